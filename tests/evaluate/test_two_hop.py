"""Two-hop facts: coverage counted by hand, splits that share nothing, and a perfect model's 1."""

import itertools
import json

import numpy as np
import pytest

from recursia import cli
from recursia.errors import ConfigError
from recursia.evaluate import two_hop

TINY = (4, 24, 0.1)  # tokens, seen compositions, share held out


def small(seed):
    return two_hop.draw(*TINY, seed)


def equivalent(facts, k):
    """Returns whether two first hops are k-equivalent, as the definition has it."""
    tokens = range(len(facts.first))
    seen = lambda hop, third: facts.is_seen[(*hop, third)]

    def answer(one, other):
        both = [third for third in tokens if seen(one, third) and seen(other, third)]
        same = [facts.answer[(*one, x)] == facts.answer[(*other, x)] for x in both]
        return all(same) and len(same) >= k

    return answer


def reached(facts, k):
    """Returns all compositions that a walk over links from seen ones reaches."""
    tokens, is_equivalent = range(len(facts.first)), equivalent(facts, k)
    hops = list(itertools.product(tokens, tokens))
    near = {one: [other for other in hops if is_equivalent(one, other)] for one in hops}
    classes = {}
    for hop in hops:
        classes[hop], border = {hop}, [hop]
        while border:
            new = set(near[border.pop()]) - classes[hop]
            classes[hop] |= new
            border += new
    return {
        (*one, third)
        for one in hops
        for third in tokens
        if any(
            facts.is_seen[(*other, third)]
            and facts.answer[(*one, third)] == facts.answer[(*other, third)]
            for other in classes[one]
        )
    }


@pytest.mark.parametrize("seed", range(4))
def test_what_is_called_covered_is_reached_by_substitution_and_nothing_else(seed):
    facts = small(seed)
    found = two_hop.evidence(facts)
    for k in range(1, len(facts.first) + 1):
        called = {tuple(place) for place in np.argwhere(found >= k).tolist()}
        assert called == reached(facts, k) if k <= found.max() else not called


def test_splits_are_disjoint_and_hold_every_composition():
    facts = small(0)
    parts = list(two_hop.splits(facts, two_hop.evidence(facts), 1).values())
    assert (np.sum(parts, 0) == 1).all()
    assert (parts[0] == facts.is_seen).all() and facts.is_seen.sum() == TINY[1]
    tokens = np.indices(facts.is_seen.shape)
    hops = {(one, two) for one, two, _ in tokens[:, facts.is_seen].T.tolist()}
    assert len(hops) <= round((1 - TINY[2]) * TINY[0] ** 2)


def test_a_held_out_hop_is_uncovered():
    facts = two_hop.draw(6, 60, 0.3, 0)
    found = two_hop.evidence(facts)
    unseen = ~facts.is_seen.any(-1)
    assert unseen.any() and not found[unseen].any()


def made(place, *options):
    sizes = ["--num_tokens=6", "--num_compositions=80", "--evidence=2", "--num_rows=9"]
    assert cli.main(["data", "facts", f"--output={place}", *sizes, *options]) == 0
    read = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
    return {path.stem: read(path) for path in sorted(place.iterdir())}


def test_files_hold_the_facts_and_go_by_the_seed(tmp_path, capsys):
    files = made(tmp_path / "a", "--seed=1")
    counts = json.loads(capsys.readouterr().out)
    assert files == made(tmp_path / "b", "--seed=1") != made(tmp_path / "c", "--seed=2")
    text = {row["text"] for row in files["train"]}
    assert len(text) == len(files["train"]) == counts["hops"] + counts["seen"] == 2 * 36 + 80
    said = lambda row: row["prompt"] + row["choices"][row["gold"]]
    first = {row[:2]: row[3] for row in text if ">" in row}
    second = {row[:2]: row[3] for row in text if "<" in row}
    for row in files["two_hop_test"]:
        a, b, c = row["prompt"][:3]
        assert said(row) == f"{a}{b}{c}={second[first[a + b] + c]}"
        assert (said(row) in text) == (row["coverage"] == "seen")
        assert (row["evidence"] >= 2) == (row["coverage"] != "uncovered")
    assert [row["text"] for row in files["validation"]] == list(map(said, files["two_hop_test"]))
    alone = made(tmp_path / "d", "--seed=1", "--compositions_only")
    assert {row["text"] for row in alone["train"]} == {row for row in text if "=" in row}


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="--num_tokens=63: takes 2 to 62"):
        two_hop.draw(63, 10, 0.0, 0)
    with pytest.raises(ConfigError, match="--num_compositions=65: 4 tokens have 64"):
        two_hop.draw(4, 65, 0.0, 0)
    with pytest.raises(ConfigError, match="--evidence=5: 0 compositions are covered"):
        two_hop.write(small(0), tmp_path / "a", k=5, num_rows=1, has_hops=True, seed=0)
    assert not (tmp_path / "a").exists()


def test_a_model_that_knows_the_facts_scores_1_and_one_that_does_not_0(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import evaluate

    from recursia.evaluate import task_scores

    made(tmp_path / "facts")
    place = tmp_path / "tasks"
    assert cli.main(["data", "tasks", f"--input={tmp_path / 'facts'}", f"--output={place}"]) == 0
    tasks = task_scores.Tasks(["two_hop"], place)
    assert set(tasks._loaded["tasks"]) == {f"two_hop_{split}" for split in two_hop.SPLITS}
    right = {row["text"] for row in made(tmp_path / "again")["validation"]}

    class Knowing(TemplateLM):
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def loglikelihood(self, requests, **_):
            return [(self.sign * ("".join(each.args) in right), True) for each in requests]

        eot_token_id = 0
        tok_encode = loglikelihood_rolling = generate_until = _loglikelihood_tokens = None

    for sign, score in ((1.0, 1.0), (-1.0, 0.0)):
        found = evaluate(Knowing(sign), tasks._loaded, bootstrap_iters=0, log_samples=False)
        assert {row["acc,none"] for row in found["results"].values()} == {score}
