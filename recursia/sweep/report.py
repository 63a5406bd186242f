"""What a sweep found: its trials ranked, and the fits that their labels call for."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from recursia import jsonlines
from recursia.sweep import comparison, ranking, valleys
from recursia.sweep import points as trials
from recursia.sweep.fits import Parabola, PowerLaw
from recursia.sweep.points import Point
from recursia.sweep.results import Result
from recursia.sweep.states import STATES
from recursia.sweep.valleys import Family, Valley

METHOD = (
    "Least squares of the metric over the natural logarithm of x; intervals cover 95 % of 500 "
    "bootstrap draws of the residuals: of the noise between trials, not of the form of a law."
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a sweep found.

    Attributes:
      metric: by which trials are compared, in nats per token.
      states: number of trials in each state that one is in.
      points: the trials that have ended with the metric, or diverged.
      rows: ranked.
      arms: models at their best learning rates; empty where no seeds differ, or sizes are compared.
      families: a list for each pair of axes; empty where labels call for no fit.
    """

    metric: str
    states: dict[str, int]
    points: list[Point]
    rows: list[ranking.Row]
    arms: list[comparison.Arm]
    families: list[list[Family]]

    @property
    def refused(self) -> list[str]:
        """Why fits are missing, a line each."""
        lines = (line for some in self.families for family in some for line in family.refused)
        return list(dict.fromkeys(lines))


def of(results: Sequence[Result]) -> Report:
    """Returns the report of a sweep.

    Raises:
      DataError: if no trial has finished.
    """
    metric = trials.metric_of(results)
    found = trials.points(results, metric)
    every = [result.state for result in results]
    families = valleys.families(found)
    has_rates = valleys.RATE in trials.varying(point.labels for point in found)
    return Report(
        metric=metric,
        states={state: every.count(state) for state in STATES if state in every},
        points=found,
        rows=ranking.rows(found),
        arms=comparison.arms(found) if has_rates or not families else [],
        families=families,
    )


def to_json(report: Report) -> dict[str, Any]:
    """Returns a report as plain values; what is no number is None."""
    plain = {
        "metric": report.metric,
        "states": report.states,
        "method": METHOD,
        "rows": [dataclasses.asdict(row) for row in report.rows],
        "arms": [dataclasses.asdict(arm) for arm in report.arms],
        "families": [_family_json(family) for some in report.families for family in some],
        "refused": report.refused,
        "trials": [dataclasses.asdict(point) for point in report.points],
    }
    return jsonlines.strict(plain)


def _family_json(family: Family) -> dict[str, Any]:
    return {
        "name": family.name,
        "across": family.across.words,
        "along": family.along.words,
        "valleys": [_valley_json(valley) for valley in family.valleys],
        "best": _law_json(family.best),
        "least": _law_json(family.least),
    }


def _valley_json(valley: Valley) -> dict[str, Any]:
    fit = valley.fit
    numbers = ("best", "least", "curvature")
    names = [point.name for point in valley.points]
    found = {"at": valley.at, "trials": names, "lowest": valley.lowest, "fit": None}
    if fit is not None:
        made = {name: dataclasses.asdict(getattr(fit, name)) for name in numbers}
        found["fit"] = {"formula": parabola(fit), **made, "residuals": fit.residuals}
    return found


def _law_json(law: PowerLaw | None) -> dict[str, Any] | None:
    return law and {"formula": power_law(law, "y", "x"), **dataclasses.asdict(law)}


def parabola(fit: Parabola) -> str:
    """Returns the formula of a parabola."""
    least, curvature, best = fit.least.value, fit.curvature.value, fit.best.value
    return f"{least:.4f} + {curvature:.4f} ln(x / {best:.4g})^2"


def power_law(law: PowerLaw, y: str, x: str) -> str:
    """Returns the formula of a power law."""
    floor = f"{law.floor.value:.4g} + " if law.floor else ""
    return f"{y} = {floor}{law.factor.value:.4g} {x}^{law.exponent.value:.3f}"


def lines(report: Report) -> list[str]:
    """Returns the fits in words: formulas, intervals, residuals, and what was refused."""
    every = sum(report.states.values())
    left = every - len(report.points)
    found = [f"{left} of {every} trials have no result, and are left out"] if left else []
    for some in report.families:
        across, along = some[0].across.words, some[0].along.words
        found += ["", f"{report.metric.replace('_', ' ')} over {across}, by {along}"]
        for family in some:
            found += _family_lines(family)
    if any(report.families):
        found += ["", METHOD]
    return found + [f"no fit: {line}" for line in report.refused]


def _family_lines(family: Family) -> list[str]:
    found = []
    for valley in family.valleys:
        if valley.fit:
            found.append(
                f"  {family.name}, {family.along.words} {valley.at:.4g}: least "
                f"{valley.fit.least:.4f} at {family.across.words} {valley.fit.best:.4g}, "
                f"residuals {_rms(valley.fit.residuals):.4f}, lowest trial {valley.lowest:.4f}"
            )
    for y, law in (("least loss", family.least), (f"best {family.across.words}", family.best)):
        if law:
            formula = power_law(law, y, family.along.words.replace(" ", "_"))
            exponent, rms = f"{law.exponent:.3f}", _rms(law.residuals)
            found.append(f"  {family.name}: {formula}, exponent {exponent}, residuals {rms:.2%}")
    return found


def _rms(residuals: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(each**2 for each in residuals))
