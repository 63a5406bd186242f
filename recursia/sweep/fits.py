"""Fits of losses: parabolas in a logarithm, power laws, and bootstrap intervals of their constants.

A bootstrap draws the residuals of the parabola anew, as many as there are trials, and fits again.
Residuals are enlarged by sqrt(n / (n - 3)) for the coefficients that n trials were fitted with; as
many trials as coefficients leave none, and no interval. Intervals cover 95 % of the draws: they are
of the noise between trials, not of the form of a law.
"""

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWS = 500  # of a bootstrap
_COVERED = (2.5, 97.5)  # percentiles
_COEFFICIENTS = 3  # of a parabola
_FLAT = 1e-9  # of y, below which a curvature is rounding
_POINTS = 3  # of a power law
_POINTS_WITH_FLOOR = 5
_STEEPEST, _FLATTEST = 3.0, 1e-3  # of a falling power law with a floor
_SECTIONS = 40  # of the golden section: 1e-8 of its interval

Numbers = Sequence[float]
Draws = np.ndarray  # of a quantity, by draw


class NotFitted(Exception):
    """Why there is no fit, in one line."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its interval; without one, both ends are None."""

    value: float
    low: float | None = None
    high: float | None = None

    def __format__(self, spec: str) -> str:
        shown = format(self.value, spec)
        if self.low is None or self.high is None:
            return shown
        return f"{shown} [{format(self.low, spec)}, {format(self.high, spec)}]"


@dataclasses.dataclass(frozen=True)
class Parabola:
    """`y = least + curvature * (log x - log best)**2`, fitted by least squares.

    Attributes:
      best: x at the minimum. An end of its interval that equals an end of the x tried is open.
      least: y at the minimum.
      curvature: half the second derivative, per squared natural logarithm.
      residuals: y minus the fit, in ascending order of x and y.
      draws: best and least by draw of the bootstrap; empty without one.
    """

    best: Estimate
    least: Estimate
    curvature: Estimate
    residuals: tuple[float, ...]
    draws: tuple[Draws, Draws] = dataclasses.field(repr=False, compare=False)

    def at(self, x: Any) -> Any:
        """Returns the fitted y at x."""
        distance = np.log(x) - math.log(self.best.value)
        return self.least.value + self.curvature.value * distance**2


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """`y = floor + factor * x**exponent`, fitted by least squares in logarithms of y.

    With a floor, least squares are of y relative to itself.

    Attributes:
      factor: of the power.
      exponent: of x.
      floor: what y tends to; None where the law has none.
      residuals: y over the fit, minus 1, in the order of x.
    """

    factor: Estimate
    exponent: Estimate
    floor: Estimate | None
    residuals: tuple[float, ...]

    def at(self, x: Any) -> Any:
        """Returns the fitted y at x."""
        floor = self.floor.value if self.floor else 0.0
        return floor + self.factor.value * np.asarray(x, float) ** self.exponent.value


def parabola(x: Numbers, y: Numbers, of: str) -> Parabola:
    """Returns the parabola through losses at positive x, in the logarithm of x.

    Args:
      x: of each trial; the order of trials does not matter.
      y: of each trial.
      of: what x is, in the plural, for messages.

    Raises:
      NotFitted: for less than three different x, or if there is no minimum between them.
    """
    xs, ys = np.array(sorted(zip(x, y, strict=True))).reshape(-1, 2).T
    if (count := len(set(xs))) < _COEFFICIENTS:
        raise NotFitted(f"has {count} {of}, and a parabola takes {_COEFFICIENTS}")
    log, center = np.log(xs), np.log(xs).mean()
    terms = np.vander(log - center, _COEFFICIENTS)
    solve = np.linalg.pinv(terms)
    found = solve @ ys
    curvature = found[0]
    middle = center - found[1] / (2 * curvature) if curvature > _FLAT * abs(ys).max() else math.nan
    if not log[0] <= middle <= log[-1]:
        where = "smaller" if terms[0] @ found < terms[-1] @ found else "larger"
        raise NotFitted(
            f"has no minimum within its {of} of {xs[0]:.4g} to {xs[-1]:.4g}; try {where} ones"
        )
    residuals = ys - terms @ found
    drawn = _drawn(residuals, _COEFFICIENTS)
    again = (found[:, None] + solve @ drawn.T) if drawn.size else np.zeros((_COEFFICIENTS, 0))
    best, least = _minima(again, log[0] - center, log[-1] - center)
    least_now = float(found[2] - curvature * (middle - center) ** 2)
    return Parabola(
        best=_estimate(math.exp(middle), np.exp(best + center)),
        least=_estimate(least_now, least),
        curvature=_estimate(float(curvature), again[0]),
        residuals=tuple(residuals.tolist()),
        draws=(np.exp(best + center), least),
    )


def _minima(coefficients: np.ndarray, first: float, last: float) -> tuple[Draws, Draws]:
    """Returns where parabolas are least between two ends, and their values there."""
    square, slope, constant = coefficients
    value = lambda at: constant + at * (slope + at * square)
    inner = np.clip(-slope / (2 * np.where(square > 0, square, np.nan)), first, last)
    nearest = np.where(value(first) < value(last), first, last)
    best = np.where(square > 0, inner, nearest)
    return best, value(best)


def _drawn(residuals: np.ndarray, coefficients: int) -> np.ndarray:
    """Returns residuals drawn anew, [draws, trials]; none if the fit leaves none."""
    count = len(residuals)
    if count <= coefficients:
        return np.zeros((0, count))
    enlarged = residuals * math.sqrt(count / (count - coefficients))
    seed = zlib.crc32(residuals.tobytes())  # other trials are drawn by another generator
    return np.random.default_rng(seed).choice(enlarged, (DRAWS, count))


def power_law(
    x: Numbers, y: Numbers, draws: Sequence[Draws], of: str, has_floor: bool = False
) -> PowerLaw:
    """Returns the power law through points of positive x and y.

    Args:
      x: of each point, ascending.
      y: of each point.
      draws: of y by point, from the bootstrap; empty where there was none.
      of: what a point is, in the plural, for messages.
      has_floor: whether the law may have a floor, if there are points enough and y falls.

    Raises:
      NotFitted: for less than three points.
    """
    if (count := len(x)) < _POINTS:
        raise NotFitted(f"has a minimum at {count} {of}, and a power law takes {_POINTS}")
    logs, ys = np.log(np.asarray(x, float)), np.asarray(y, float)
    falls = _straight(logs, ys[None])[0, 2] < 0
    has_floor = bool(has_floor and count >= _POINTS_WITH_FLOOR and falls)
    fit = _with_floor if has_floor else _straight
    found = fit(logs, ys[None])[0]
    is_drawn = len(draws) == count and all(map(len, draws))
    again = fit(logs, np.stack(draws, 1)) if is_drawn else np.zeros((0, 3))
    floor, log_factor, exponent = found
    with np.errstate(over="ignore"):  # of the draws with the steepest exponents
        factors = np.exp(again[:, 1])
    fitted = floor + np.exp(log_factor + exponent * logs)
    return PowerLaw(
        factor=_estimate(math.exp(log_factor), factors),
        exponent=_estimate(float(exponent), again[:, 2]),
        floor=_estimate(float(floor), again[:, 0]) if has_floor else None,
        residuals=tuple((ys / fitted - 1).tolist()),
    )


def _straight(log_x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns 0, the logarithm of the factor, and the exponent, for each row of y."""
    exponents, log_factors = np.polyfit(log_x, np.log(y).T, 1)
    return np.stack([np.zeros_like(exponents), log_factors, exponents], 1)


def _with_floor(log_x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the floor, the logarithm of the factor, and the exponent, for each row of y.

    For a given exponent the law is linear; the exponent is found by golden section.
    """
    low, high = np.full(len(y), -_STEEPEST), np.full(len(y), -_FLATTEST)
    center, golden = log_x.mean(), (math.sqrt(5) - 1) / 2
    for _ in range(_SECTIONS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        is_left = _linear(left, log_x - center, y)[2] < _linear(right, log_x - center, y)[2]
        low, high = np.where(is_left, low, left), np.where(is_left, right, high)
    exponents = (low + high) / 2
    floors, factors, _ = _linear(exponents, log_x - center, y)
    return np.stack([floors, np.log(factors) - exponents * center, exponents], 1)


def _linear(
    exponents: np.ndarray, log_x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns floor and factor of the least relative squares of each row, and those squares.

    Neither is negative.
    """
    power = np.exp(exponents[:, None] * log_x)
    one, two = 1 / y, power / y
    sums = lambda *terms: np.prod(terms, axis=0).sum(1)
    a, b, c = sums(one, one), sums(one, two), sums(two, two)
    p, q = one.sum(1), two.sum(1)
    floor = np.maximum((p * c - q * b) / (a * c - b * b), 0)
    factor = np.maximum((q - floor * b) / c, 1e-300)
    return floor, factor, ((1 - floor[:, None] * one - factor[:, None] * two) ** 2).sum(1)


def _estimate(value: float, draws: Draws) -> Estimate:
    if not len(draws):
        return Estimate(value)
    low, high = np.percentile(draws, _COVERED).tolist()
    return Estimate(value, low, high)
