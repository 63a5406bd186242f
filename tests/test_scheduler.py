"""The closed forms of continuous depth-wise batching, and how slots are refilled."""

from fractions import Fraction

import numpy as np
import pytest

from recursia.generate.scheduler import Scheduler, simulate

SLOTS, RECURSIONS = 4, 3


def ticks(requests, discipline, num_slots=SLOTS):
    how = {"num_slots": num_slots, "num_recursions": RECURSIONS, "discipline": discipline}
    return simulate(requests, **how).ticks


def ratio(requests):
    """Returns the throughput by depth over that by sequence."""
    return Fraction(ticks(requests, "sequence"), ticks(requests, "depth"))


def requests(seed, lengths):
    """Returns requests whose tokens take random recursions."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, RECURSIONS + 1, length).tolist() for length in lengths]


@pytest.mark.parametrize("seed", range(3))
def test_without_early_exits_depth_is_sequence(seed):
    lengths = np.random.default_rng(seed).integers(1, 9, 17)
    assert ratio([[RECURSIONS] * length for length in lengths]) == 1


@pytest.mark.parametrize("last", range(1, RECURSIONS + 1))
def test_exits_after_one_recursion_give_its_ratio(last):
    lengths = np.random.default_rng(last).integers(1, 9, 17)
    assert ratio([[last] * length for length in lengths]) == Fraction(RECURSIONS, last)


@pytest.mark.parametrize("seed", range(3))
def test_a_full_batch_gives_recursions_over_mean_recursions(seed):
    """Every request takes as many recursions, in its own order: the batch is full to the end."""
    (depths,) = requests(seed, [10])
    shuffled = [np.random.default_rng(i).permutation(depths).tolist() for i in range(3 * SLOTS)]
    assert ratio(shuffled) == RECURSIONS / Fraction(sum(depths), len(depths))


@pytest.mark.parametrize("seed", range(3))
def test_slots_are_idle_at_the_end_alone(seed):
    given = requests(seed, np.random.default_rng(seed).integers(1, 20, 40))
    recursions, longest = sum(map(sum, given)), max(map(sum, given))
    assert 0 <= SLOTS * ticks(given, "depth") - recursions <= (SLOTS - 1) * longest
    tokens, longest = sum(map(len, given)), max(map(len, given))
    idle = SLOTS * ticks(given, "sequence") - RECURSIONS * tokens
    assert 0 <= idle <= (SLOTS - 1) * RECURSIONS * longest


def test_a_static_batch_takes_the_recursions_of_its_longest_texts():
    lengths = [3, 1, 1, 1, 2, 5]
    assert ticks(requests(0, lengths), "static") == RECURSIONS * (3 + 5)


def test_one_slot_is_refilled_alike_by_sequence_and_in_static_batches():
    given = requests(1, [2, 3, 4])
    assert ticks(given, "static", 1) == ticks(given, "sequence", 1) == RECURSIONS * 9
    assert ticks(given, "depth", 1) == sum(map(sum, given))


def test_a_token_that_stops_leaves_its_slot_at_once_by_depth_alone():
    stops = np.array([True, False])
    for discipline, left in (("depth", [[0], [0]]), ("sequence", [[], [], [0, 1]])):
        scheduler = Scheduler(2, RECURSIONS, discipline)
        scheduler.take([0, 1])
        for expected in left:
            assert scheduler.advance(~stops) == expected
            assert scheduler.running.tolist() == [discipline == "depth" or expected == [0, 1], True]


def test_a_free_slot_waits_for_the_end_of_a_token_by_sequence_alone():
    for discipline, is_open in (("depth", True), ("sequence", False), ("static", False)):
        scheduler = Scheduler(2, RECURSIONS, discipline)
        scheduler.take([0])
        scheduler.advance(np.array([True, True]))
        assert scheduler.free == ([1] if is_open else [])
        for _ in range(RECURSIONS - 1):
            scheduler.advance(np.array([True, True]))
        assert scheduler.free == ([] if discipline == "static" else [1])
