"""Two-hop facts: text to train on, and a test of compositions that substitution covers or not.

A first hop takes two tokens to a bridge, a second the bridge and a third token to the answer. Two
first hops are k-equivalent if they have the same answer in at least k contexts (third tokens) in
which both were seen, and another in none. Compositions that differ by equivalent first hops and
have one answer are linked; those linked to a seen one are covered. The Coverage Principle (Chang et
al. 2025, arXiv 2505.20278): what only matches patterns can be right beyond its coverage by chance.
"""

import dataclasses
import pathlib
import string
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from recursia import jsonlines, safely
from recursia.errors import ConfigError

TOKENS = string.ascii_letters + string.digits
SPLITS = ("seen", "covered", "uncovered")


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """Two hops, and the compositions of them that are seen.

    Attributes:
      first: the bridge of two tokens.
      second: the answer of a bridge and a third token.
      is_seen: whether the training text has the composition of three tokens.
    """

    first: Int[np.ndarray, "V V"]
    second: Int[np.ndarray, "V V"]
    is_seen: Bool[np.ndarray, "V V V"]

    @property
    def answer(self) -> Int[np.ndarray, "V V V"]:
        """The answer of three tokens."""
        return self.second[self.first]


def draw(num_tokens: int, num_compositions: int, held_out: float, seed: int) -> Facts:
    """Returns random facts.

    Args:
      num_tokens: that facts are of.
      num_compositions: that are seen.
      held_out: share of first hops, and of second ones, that no seen composition takes.
      seed: of all draws.

    Raises:
      ConfigError: if there are not as many tokens or compositions.
    """
    if not 2 <= num_tokens <= len(TOKENS):
        raise ConfigError(f"--num_tokens={num_tokens}: takes 2 to {len(TOKENS)}, a character each")
    rng, shape = np.random.default_rng(seed), (num_tokens, num_tokens)
    first, second = rng.integers(num_tokens, size=(2, *shape))
    number = num_tokens**2
    kept = [rng.permutation(number).reshape(shape) >= round(held_out * number) for _ in "12"]
    places = rng.permutation(np.flatnonzero(kept[0][..., None] & kept[1][first]))
    if not 1 <= num_compositions <= len(places):
        raise ConfigError(
            f"--num_compositions={num_compositions}: {num_tokens} tokens have {len(places)} of "
            f"hops that are not held out; take at most as many, or more tokens"
        )
    is_seen = np.zeros(num_tokens**3, bool)
    is_seen[places[:num_compositions]] = True
    return Facts(first, second, is_seen.reshape(*shape, -1))


def agreement(facts: Facts) -> Int[np.ndarray, "P P"]:
    """Returns in how many contexts two first hops are seen and agree; 0 if in one they do not."""
    seen = np.where(facts.is_seen, facts.answer, -1).reshape(-1, len(facts.first))
    agree = np.zeros((len(seen), len(seen)), np.uint8)
    differ = np.zeros_like(agree, bool)
    for answers in seen.T:
        is_both = (answers >= 0)[:, None] & (answers >= 0)
        is_same = answers[:, None] == answers
        agree += is_both & is_same
        differ |= is_both & ~is_same
    return np.where(differ, 0, agree)


def evidence(facts: Facts) -> Int[np.ndarray, "V V V"]:
    """Returns the largest k at which a composition is covered; 0 where it is at none.

    A seen one is at every k, up to the largest of all.
    """
    count = len(facts.first)
    agree, answer = agreement(facts), facts.answer.reshape(-1, count)
    hops, context = np.nonzero(facts.is_seen.reshape(-1, count))
    group = np.arange(len(agree))
    found = np.zeros(answer.shape, int)
    for k in range(int(agree.max()), 0, -1):
        group = _joined(group, *np.nonzero(agree == k))
        known = np.zeros((len(agree), count, count), bool)
        known[group[hops], context, answer[hops, context]] = True
        is_covered = known[group[:, None], np.arange(count), answer]
        found[(found == 0) & is_covered] = k
    return found.reshape(facts.is_seen.shape)


def splits(
    facts: Facts, found: Int[np.ndarray, "V V V"], k: int
) -> dict[str, Bool[np.ndarray, "V V V"]]:
    """Returns which compositions are seen, which others k-covered, and which not; by `SPLITS`."""
    is_covered = found >= k
    parts = facts.is_seen, ~facts.is_seen & is_covered, ~facts.is_seen & ~is_covered
    return dict(zip(SPLITS, parts, strict=True))


def write(
    facts: Facts, output: pathlib.Path, *, k: int, num_rows: int, has_hops: bool, seed: int
) -> dict[str, int]:
    """Writes texts to train and validate on, and the data set of the task `two_hop`.

    Args:
      facts: what they are of.
      output: a new directory.
      k: contexts in which equivalent first hops agree, at least.
      num_rows: of each split that are tested, at most.
      has_hops: whether the training text has all single hops too.
      seed: of the order, and of which rows are tested.

    Returns:
      How many single hops the text has, and compositions by split; all of them, not the tested.

    Raises:
      ConfigError: if the output holds something or cannot be written, or a split is empty.
    """
    rng, found = np.random.default_rng(seed), evidence(facts)
    parts = splits(facts, found, k)
    if empty := [name for name, part in parts.items() if not part.any()]:
        raise ConfigError(
            f"--evidence={k}: 0 compositions are {empty[0]}, as some agree in up to {found.max()} "
            "contexts; change it, or --num_compositions"
        )
    some = {name: rng.permutation(np.argwhere(part))[:num_rows] for name, part in parts.items()}
    tested = [(name, tuple(place)) for name, part in some.items() for place in part.tolist()]
    hops = _hops(facts) if has_hops else []
    text = hops + [_composition(facts, tuple(place)) for place in np.argwhere(facts.is_seen)]
    rows = [_row(facts, name, int(found[place]), place) for name, place in tested]
    files = {
        "train": [{"text": text[place]} for place in rng.permutation(len(text))],
        "validation": [{"text": _composition(facts, place)} for _, place in tested],
        "two_hop_test": rows,
    }
    with safely.new_folder(output) as made:
        for name, given in files.items():
            lines = "".join(map(jsonlines.line, given))
            (made / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    return {"hops": len(hops)} | {name: int(part.sum()) for name, part in parts.items()}


def _joined(
    group: Int[np.ndarray, "P"], one: Int[np.ndarray, "L"], other: Int[np.ndarray, "L"]
) -> Int[np.ndarray, "P"]:
    """Returns groups of numbers, each named by its least, with those of linked numbers joined."""
    while (group[one] != group[other]).any():
        least, both = np.arange(len(group)), (group[one], group[other])
        np.minimum.at(least, np.maximum(*both), np.minimum(*both))
        group = least[group]
    return group


def _hops(facts: Facts) -> list[str]:
    """Returns the text of each single hop."""
    said = lambda hop, sign: [
        f"{TOKENS[a]}{TOKENS[b]}{sign}{TOKENS[to]}" for (a, b), to in np.ndenumerate(hop)
    ]
    return said(facts.first, ">") + said(facts.second, "<")


def _query(place: tuple[int, ...]) -> str:
    return "".join(TOKENS[token] for token in place) + "="


def _composition(facts: Facts, place: tuple[int, ...]) -> str:
    return _query(place) + TOKENS[facts.answer[place]]


def _row(facts: Facts, split: str, k: int, place: tuple[int, ...]) -> dict[str, Any]:
    choices = list(TOKENS[: len(facts.first)])
    row = {"prompt": _query(place), "choices": choices, "gold": int(facts.answer[place])}
    return row | {"coverage": split, "evidence": k}
