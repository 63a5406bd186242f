"""The result of an evaluation as a text table."""

from collections.abc import Mapping, Sequence
from typing import Any

from recursia.evaluate.variants import Row, main_metric, title

Cells = list[str]
_SEGMENT = 16  # tokens, of those that routing is consistent over


def render(result: Mapping[str, Any]) -> str:
    """Returns a table with a block for the text and one for each task, a line for each variant.

    Args:
      result: of `tables.evaluate`.
    """
    blocks = [_text(result)] if "table" in result else []
    blocks += [_task([row for row in result["tasks"] if row["task"] == n]) for n in shown(result)]
    blocks += _routing(result["routing"]) if "routing" in result else []
    first = max(len(cells[0]) for block in blocks for cells in block)
    lines = [f"step {result['step']}, trained at depth {result['trained_depth']}"]
    for block in blocks:
        lines += ["", *_aligned(block, first)]
    missing = result.get("missing", {})
    lines += [f"depth {depth} is missing: {reason}" for depth, reason in missing.items()]
    return "\n".join(lines)


def shown(result: Mapping[str, Any]) -> list[str]:
    """Returns the tasks that were asked for by name, or all where none was, as with a tag."""
    names = list(dict.fromkeys(row["task"] for row in result.get("tasks", ())))
    return [name for name in names if name in result["suite"]["tasks"]] or names


def _text(result: Mapping[str, Any]) -> list[Cells]:
    scores = [("bits/byte", "bits_per_byte"), ("nats/token", "nats_per_token")]
    head, values = (
        [name for name, _ in scores],
        lambda row: [f"{row[key]:.4f}" for _, key in scores],
    )
    block = _block(f"text, {result['tokens']:,} tokens", head, result["table"], values)
    baselines = result.get("baselines", {}).items()
    return block + [[f"  {name}", f"{bits:.4f}"] for name, bits in baselines]


def _routing(routing: Mapping[str, Any]) -> list[list[Cells]]:
    """Returns a block of routers and recursions and one of memories, of those that there are."""
    tokens = f"{routing['tokens']:,} tokens"
    blocks = [_routers(routing, tokens), _memories(routing.get("memories", {}), tokens)]
    return [block for block in blocks if len(block) > 1]


def _routers(routing: Mapping[str, Any], tokens: str) -> list[Cells]:
    """Returns a line for each router, with what chance would give in brackets."""
    head = ["choices", "affinity", "SRP", "SCH", "margin"]
    block = [[f"routing, {tokens}", *head]]
    for slot, found in routing["routers"].items():
        nats = found["affinity_nats"]
        affinity = ""
        if nats:
            affinity = _both(_mean(nats), _mean(found["affinity_nats_by_chance"]), ".3f")
        margins = [quantiles[1] for quantiles in found["margin"] if quantiles]
        choices = f"{found['top_k']} of {found['experts']}"
        margin = f"{_mean(margins):.3f}" if margins else ""
        cells = [choices, affinity, *_consistency(found), margin]
        block.append([f"  {slot}", *cells])
    if depth := routing.get("recursions"):
        choices = f"1 of {depth['recursions']}"
        block.append(["  recursions", choices, "", *_consistency(depth), ""])
    return block


def _memories(memories: Mapping[str, Any], tokens: str) -> list[Cells]:
    """Returns a line for each memory, with what chance would give in brackets."""
    block = [[f"memories, {tokens}", "reads", "used", "unread", "KL", "overlap", "SRP", "SCH"]]
    for slot, found in memories.items():
        chance = lambda name, how, of=found: (
            _both(_mean(of[name]), _mean(of[f"{name}_by_chance"]), how) if of[name] else ""
        )
        reads = f"{found['heads']} x {found['top_k']} of {found['values']:,}"
        cells = [reads, chance("used", ".1%"), f"{found['unread']:,}", chance("kl_nats", ".3f")]
        block.append([f"  {slot}", *cells, chance("overlap", ".1%"), *_consistency(found)])
    return block


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _both(value: float, chance: float, how: str) -> str:
    return f"{value:{how}} ({chance:{how}})"


def _consistency(found: Mapping[str, Any]) -> Cells:
    """Returns SRP and SCH of a middle length of segment, and of the smallest cache."""
    rows = found["consistency"]
    if not rows:
        return ["", ""]
    row = next((row for row in rows if row["segment"] == _SEGMENT), rows[-1])
    size = next(iter(row["sch"]), None)
    hits = _both(row["sch"][size], row["sch_by_chance"][size], ".1%") if size else ""
    return [_both(row["srp"], row["srp_by_chance"], ".3f"), hits]


def _task(rows: Sequence[Row]) -> list[Cells]:
    names = [name for name in rows[0]["metrics"] if "_stderr" not in name]
    names.sort(key=lambda name: name != main_metric(rows[0]))  # the causal gap is of the first

    def values(row: Row) -> Cells:
        found = []
        for name in names:
            metric, comma, how = name.partition(", ")
            error = row["metrics"].get(f"{metric}_stderr{comma}{how}")
            after = "" if error is None else f" \u00b1 {_written(error)}"
            found.append(f"{_written(row['metrics'][name])}{after}")
        return found

    return _block(f"{rows[0]['task']}, {rows[0]['num_samples']:,} rows", names, rows, values)


def _written(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


def _block(name: str, head: Cells, rows: Sequence[Row], values: Any) -> list[Cells]:
    """Returns a head and a line for each row; columns that no row has are left out."""
    optional = {
        "causal gap": ("causal_gap", "+.4f"),
        "recursions/token": ("mean_depth", ".3f"),
        "cache bytes/token": ("cache_bytes_per_token", ",.0f"),
    }
    has = {n: how for n, how in optional.items() if any(how[0] in row for row in rows)}
    block = [[name, *head, *has]]
    for row in rows:
        more = [format(row[key], how) if key in row else "" for key, how in has.values()]
        block.append([f"  {title(row)}", *values(row), *more])
    return block


def _aligned(block: Sequence[Cells], first: int) -> list[str]:
    """Returns lines whose cells after the first are aligned at the right."""
    widths = [max(len(c[i]) for c in block if i < len(c)) + 2 for i in range(1, len(block[0]))]
    pad = lambda cells: "".join(f"{c:>{width}}" for c, width in zip(cells, widths, strict=False))
    return [f"{cells[0]:{first}}{pad(cells[1:])}".rstrip() for cells in block]
