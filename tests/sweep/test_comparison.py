"""Models are compared at their best rates: what is told from noise is there, and noise is not."""

import json

import numpy as np
import pytest
from scipy import stats

from recursia import cli
from recursia.sweep import comparison, picture, report
from tests.helpers import sweeps

RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def results(means, *, best=2e-3, noise=0.05, common=0.0, seeds=5, key=0, rates=RATES):
    """Returns results of models by name, whose noise of a seed is in part common to all."""
    draw, found = np.random.default_rng(key), []
    shared = common * draw.normal(size=seeds)
    for name, mean in means.items():
        for rate in rates:
            for seed in range(seeds):
                loss = mean + 0.2 * np.log(rate / best) ** 2 + noise * draw.normal() + shared[seed]
                labels = {"model": name, "learning_rate": rate, "seed": seed}
                found.append(sweeps.result(f"t{len(found):04}", labels, float(loss)))
    return found


def arms(found):
    return report.of(found).arms


def test_each_stands_for_its_best_rate_with_a_students_t_interval():
    found = results({"a": 2.0, "b": 3.0})
    best, other = arms(found)
    assert (best.name, other.name, best.rate, other.rate) == ("a", "b", 2e-3, 2e-3)
    at = lambda name: np.array(
        [r.metrics["validation_loss"] for r in found
         if r.labels["model"] == name and r.labels["learning_rate"] == best.rate]
    )  # fmt: skip
    low, high = stats.t.interval(0.95, 4, at("a").mean(), stats.sem(at("a")))
    assert best.loss.value == pytest.approx((low + high) / 2)
    assert best.loss.half == pytest.approx((high - low) / 2)
    test = stats.ttest_rel(at("b"), at("a")).confidence_interval()
    assert other.over_best.value - other.over_best.half == pytest.approx(test.low)
    assert best.over_best is None


def test_noise_that_seeds_share_hides_no_difference():
    best, other = arms(results({"a": 2.0, "b": 2.1}, noise=0.01, common=1.0))
    assert best.loss.half > 0.1
    assert not other.over_best.is_noise


def test_equal_models_differ_by_noise():
    """Choosing the best of both makes 5 % a little more."""
    noise = [
        arms(results({"a": 2.0, "b": 2.0}, key=key, rates=(2e-3,)))[1].over_best.is_noise
        for key in range(200)
    ]
    assert 0.9 < np.mean(noise) < 0.99


def test_a_rate_at_which_trials_diverge_is_not_the_best():
    found = results({"a": 2.0, "b": 3.0})
    gone = [
        sweeps.result(r.name, r.labels, None)
        if (r.labels["learning_rate"], r.labels["seed"], r.labels["model"]) == (2e-3, 0, "a")
        else r
        for r in found
    ]
    best, other = arms(gone)
    assert (best.name, best.diverged, len(best.losses)) == ("a", 0, 5)
    assert best.rate != other.rate == 2e-3


def test_a_rate_at_the_end_of_those_tried_is_marked():
    marked = {best: arms(results({"a": 2.0, "b": 3.0}, best=best))[0] for best in RATES}
    assert [arm.is_at_end for arm in marked.values()] == [True, False, False, True]
    assert comparison.rate(marked[8e-3]) == "0.008, at an end"


def test_without_several_seeds_or_models_nothing_is_compared():
    assert not arms(results({"a": 2.0, "b": 3.0}, seeds=1))
    assert not arms(results({"a": 2.0}))


def test_a_rate_that_is_a_word_is_a_label():
    named = {rate: name for rate, name in zip(RATES, ("least", "low", "high", "most"), strict=True)}
    found = results({"a": 2.0, "b": 3.0})
    for each in found:
        each.labels["learning_rate"] = named[each.labels["learning_rate"]]
    assert len(arms(found)) == 8 and {comparison.rate(arm) for arm in arms(found)} == {""}
    assert picture.draw(report.of(found), "a sweep").axes


def test_a_model_that_always_diverged_is_no_arm():
    found = [
        sweeps.result(r.name, r.labels, None) if r.labels["model"] == "a" else r
        for r in results({"a": 2.0, "b": 2.5, "c": 3.0})
    ]
    assert [arm.name for arm in arms(found)] == ["b", "c"]


def test_a_report_says_and_draws_the_comparison(monkeypatch, tmp_path, capsys):
    found = results({"a": 2.0, "b": 3.0})
    monkeypatch.setattr("recursia.sweep.results.read", lambda _: found)
    (tmp_path / "s").mkdir()
    assert cli.main(["sweep", "report", f"--workdir={tmp_path / 's'}"]) == 0
    assert "over the best" in (out := capsys.readouterr().out)
    assert " ".join(comparison.METHOD.split()) in " ".join(out.split())
    made = json.loads((tmp_path / "s" / "report.json").read_text())
    assert made["arms"][1]["over_best"]["value"] == pytest.approx(1.0, abs=0.1)
    panels = {a.get_title(): a for a in picture.draw(report.of(found), "a sweep").axes}
    assert len(panels["at the best rates, 95 %"].get_yticks()) == 2
