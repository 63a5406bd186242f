"""One line on a run: how far it came, how it ended, and whether its loss was still falling."""

import math
from collections.abc import Sequence

import numpy as np

from recursia.errors import Diverged
from recursia.report.record import Record

_STOPPED = (75, 130)  # by a signal, with nothing lost
_PART = 10  # the last tenth of the steps is compared with the tenth before it
_LEAST = 5e-3  # of the loss, below which a difference is none


def verdict(record: Record) -> tuple[str, str]:
    """Returns a word for how the run stands, and a sentence.

    The word is "finished", "diverged", "stopped", "failed", "running" or "not begun".
    """
    word, sentence = _standing(record)
    parts = [sentence, _loss(record), falling(record)]
    return word, "; ".join(part for part in parts if part) + "."


def _standing(record: Record) -> tuple[str, str]:
    step, num_steps = record.step, record.run.train.num_steps
    at = f"at step {step:,} of {num_steps:,}"
    code, why = record.ended or (None, "")
    if record.is_live:
        return ("running", at) if step else ("running", "no step has a row yet")
    if code == Diverged.exit_code:
        return "diverged", why.removesuffix(".") or at
    if step >= num_steps:
        return "finished", f"all {num_steps:,} steps"
    if code in _STOPPED:
        return "stopped", f"{at}, by a signal; the same command resumes it"
    if code:
        return "failed", f"{at} with exit code {code}: {why.removesuffix('.')}"
    if not step:
        return "not begun", f"0 of {num_steps:,} steps have a row"
    return "stopped", f"{at}, without a word: its process was killed, or it has been moved"


def _loss(record: Record) -> str:
    for rows, name in ((record.validation, "validation_loss"), (record.training, "loss")):
        if rows:
            row, of = rows[-1], "validation" if "validation" in name else "training"
            bits = row.get("validation_bits_per_byte")
            more = f" ({bits:.3f} bits per byte)" if bits else ""
            return f"{of} loss {row[name]:.3f} nats per token{more} at step {row['step']:,}"
    return ""


def falling(record: Record) -> str:
    """Returns whether the training loss was still falling; "" if that cannot be told.

    The mean of the last tenth of the steps is compared with that of the tenth before: a difference
    counts if it is larger than two standard errors and than 0.5 % of the loss.
    """
    losses = [row["loss"] for row in record.training if isinstance(row["loss"], float)]
    count = len(losses) // _PART
    if count < 3:
        return ""
    before, last = losses[-2 * count : -count], losses[-count:]
    fall = float(np.mean(before) - np.mean(last))
    error = math.sqrt((_variance(before) + _variance(last)) / count)
    if abs(fall) <= max(2 * error, _LEAST * abs(float(np.mean(last)))):
        return "the training loss had levelled off"
    if fall < 0:
        return f"the training loss was rising, by {-fall:.3f} in the last tenth of the steps"
    return f"the training loss was still falling, by {fall:.3f} in the last tenth of the steps"


def _variance(values: Sequence[float]) -> float:
    return float(np.var(values, ddof=1))
