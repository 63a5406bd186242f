"""Fits recover the constants of known laws, and say how sure they are of them."""

import numpy as np
import pytest

from recursia.sweep.fits import NotFitted, parabola, power_law

X = np.repeat([1e4, 2e4, 4e4, 8e4], 3)
BUDGETS = np.array([1e10, 2e10, 4e10, 8e10, 16e10, 32e10])


def losses(noise, key=0):
    """Returns losses of a parabola with its least, 2, at 3e4."""
    return 2 + 0.1 * np.log(X / 3e4) ** 2 + noise * np.random.default_rng(key).normal(size=X.size)


def holds(estimate, truth):
    return estimate.low <= truth <= estimate.high


def width(estimate):
    return estimate.high - estimate.low


def test_a_parabola_without_noise_is_found_again():
    fit = parabola(X, losses(0.0), "sizes")
    assert fit.best.value == pytest.approx(3e4)
    assert fit.least.value == pytest.approx(2)
    assert fit.curvature.value == pytest.approx(0.1)
    assert fit.at(8e4) == pytest.approx(losses(0.0)[-1])
    assert max(map(abs, fit.residuals)) < 1e-12


def test_intervals_hold_the_constants_about_as_often_as_they_say():
    fits = [parabola(X, losses(0.02, key), "sizes") for key in range(60)]
    for name, truth in {"best": 3e4, "least": 2.0, "curvature": 0.1}.items():
        held = [holds(getattr(fit, name), truth) for fit in fits]
        assert 0.85 <= np.mean(held) <= 1.0


def test_intervals_widen_with_noise():
    for key in range(5):
        quiet, loud = (parabola(X, losses(noise, key), "sizes") for noise in (0.005, 0.02))
        for name in ("best", "least", "curvature"):
            assert width(getattr(loud, name)) > 2 * width(getattr(quiet, name))


def test_the_order_of_trials_does_not_matter():
    order = np.random.default_rng(3).permutation(X.size)
    assert parabola(X[order], losses(0.02)[order], "sizes") == parabola(X, losses(0.02), "sizes")


def test_as_many_trials_as_coefficients_have_no_interval():
    fit = parabola([1, 2, 4], [1.1, 1.0, 1.2], "sizes")
    assert fit.least.low is None and fit.best.high is None
    assert f"{fit.least:.3f}" == "0.996"


@pytest.mark.parametrize("sizes", [[], [1e4], [1e4, 1e4, 2e4, 2e4]])
def test_too_few_sizes_are_refused_with_both_numbers(sizes):
    count = len(set(sizes))
    with pytest.raises(NotFitted, match=f"has {count} sizes, and a parabola takes 3"):
        parabola(sizes, [2.0] * len(sizes), "sizes")


@pytest.mark.parametrize(
    ("y", "advice"),
    [
        ([2.0, 2.2, 2.5], "smaller"),  # the vertex lies left
        ([2.5, 2.2, 2.0], "larger"),
        ([2.0, 2.5, 2.1], "smaller"),  # opens down
        ([2.0, 2.0, 2.0], "(smaller|larger)"),
    ],
)
def test_a_minimum_outside_of_what_was_tried_is_no_minimum(y, advice):
    with pytest.raises(NotFitted, match=f"no minimum within its sizes.*try {advice} ones"):
        parabola([1e4, 2e4, 4e4], y, "sizes")


def test_a_minimum_near_the_edge_has_an_interval_that_ends_there():
    y = 2 + 0.1 * np.log(X / 1.1e4) ** 2 + 0.03 * np.random.default_rng(1).normal(size=X.size)
    assert parabola(X, y, "sizes").best.low == pytest.approx(X.min())


def drawn(y, noise, key=0):
    """Returns noisy points of a law, and draws around them as a bootstrap has them."""
    draw = np.random.default_rng(key)
    points = y * (1 + noise * draw.normal(size=len(y)))
    return points, [point * (1 + noise * draw.normal(size=300)) for point in points]


def test_a_power_law_is_found_again():
    law = power_law(BUDGETS, 30 * BUDGETS**-0.15, [], "budgets")
    assert (law.factor.value, law.exponent.value) == pytest.approx((30, -0.15))
    assert law.floor is None and law.exponent.low is None
    assert law.at(1e12) == pytest.approx(30 * 1e12**-0.15)


def test_a_power_law_with_a_floor_is_found_again():
    law = power_law(BUDGETS, 1.5 + 120 * BUDGETS**-0.2, [], "budgets", has_floor=True)
    found = law.floor.value, law.factor.value, law.exponent.value
    assert found == pytest.approx((1.5, 120, -0.2), rel=1e-3)


def test_intervals_of_a_power_law_hold_its_constants_and_widen_with_noise():
    held, y = [], 30 * BUDGETS**-0.15
    for key in range(40):
        laws = [power_law(BUDGETS, *drawn(y, noise, key), "budgets") for noise in (0.002, 0.01)]
        held += [holds(law.exponent, -0.15) and holds(law.factor, 30) for law in laws]
        assert width(laws[1].exponent) > 2 * width(laws[0].exponent)
    assert np.mean(held) >= 0.85


def test_a_floor_takes_five_points_and_a_power_law_three():
    y = 1.5 + 120 * BUDGETS**-0.2
    for count, has_floor in ((3, False), (4, False), (5, True)):
        law = power_law(BUDGETS[:count], y[:count], [], "budgets", has_floor=True)
        assert (law.floor is not None) == has_floor
    with pytest.raises(NotFitted, match="2 budgets, and a power law takes 3"):
        power_law(BUDGETS[:2], y[:2], [], "budgets")
