"""Step Law: published numbers, and both readings of a model that shares its weights."""

import pytest

from recursia.step_law import reading, step_law
from tests.helpers.tiny import tiny


@pytest.mark.parametrize(
    ("num_params", "num_tokens", "rate", "batch"),
    [(10**8, 2e9, 2.5e-3, 119e3), (10**9, 2e10, 1.0e-3, 442e3)],
)
def test_the_law_by_its_numbers(num_params, num_tokens, rate, batch):
    found = reading(num_params, num_tokens)
    assert found.learning_rate == pytest.approx(rate, rel=0.03)
    assert found.batch_tokens == pytest.approx(batch, rel=0.01)
    with pytest.raises(ValueError, match="got 0 parameters"):
        reading(0, num_tokens)


def test_a_model_that_shares_has_two_readings_and_a_warning():
    shared, plain = step_law(tiny(recursions=3), 1e6), step_law(tiny(recursions=1), 1e6)
    assert plain.unique == plain.applied and not plain.warning
    assert shared.unique == plain.unique
    assert shared.applied.learning_rate < shared.unique.learning_rate
    assert shared.applied.batch_tokens == shared.unique.batch_tokens
    norm = 16  # of the head, applied once
    both = shared.applied.num_params - norm, shared.unique.num_params - norm
    assert both[0] == 3 * both[1]
    assert "sweep around both" in shared.warning and f"{both[0] + norm:,}" in shared.warning
