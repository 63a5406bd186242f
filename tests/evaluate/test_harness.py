"""A recursive model under lm-evaluation-harness: what it is asked, and what it answers."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import sharding
from recursia.data.vocabulary import ByteTokenizer
from recursia.errors import ConfigError, DataError
from recursia.evaluate import requests, tasks, variants
from recursia.generate import decode
from recursia.generate.sampling import Sampling
from recursia.workdir import trained as runs
from recursia.workdir.trained import Trained
from tests.helpers import exhaustive, slow
from tests.helpers.points import point
from tests.helpers.runs import tiny_run
from tests.helpers.tiny import draw, forward

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate

from recursia.evaluate.harness import HarnessLM
from recursia.evaluate.task_scores import Tasks

DATA = pathlib.Path(__file__).parent / "data_sets"
CONTEXT = 48
TOKENIZER = ByteTokenizer()
PAIRS = [  # rows of 14 tokens but for two: few programs to compile
    ("red blue ", "green"),
    ("red", " blue seven"),
    ("", "one seven ten"),
    ("   ", "ten green "),
    ("blue " * 12, "red"),
    ("one\n", " seven ten"),
    ("sieben é", "\u00fcber"),
    ("red", ""),
]


def trained(config, devices=1):
    """Returns a model as if it had been trained on bytes."""
    config = config.sized(TOKENIZER.vocab_size)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=devices), jax.devices()[:devices])
    run = tiny_run(pathlib.Path("."), "fixed")
    train = dataclasses.replace(run.train, seq_len=CONTEXT)
    run = dataclasses.replace(run, model=config, train=train)
    return Trained(run, 7, config, mesh, draw(config), TOKENIZER, ())


def model_of(of, mode="causal", **how):
    return HarnessLM(of, of.model, of.params, mode, **{"say": lambda line: None} | how)


def asking(kind, arguments, task="colours"):
    return [
        Instance(kind, {}, each, index, metadata=(task, index, 1))
        for index, each in enumerate(arguments)
    ]


def directly(of, ids, count, mode):
    """Returns the log-likelihood of the last ids of a row, and whether they are greedy."""
    kept = ids[-(CONTEXT + 1) :]
    logits, _ = forward(of.params, jnp.array([kept[:-1]]), of.model, mode)
    each = np.asarray(jax.nn.log_softmax(logits[0]))[len(kept) - 1 - count :]
    targets = np.array(kept[len(kept) - count :], int)
    total = each[np.arange(count), targets].sum()
    return float(total), bool((each.argmax(-1) == targets).all())


# tests/evaluate/test_requests.py holds the same for every policy, without the harness.
@pytest.mark.parametrize("depth", [slow("act"), exhaustive("expert_choice")])
def test_likelihoods_equal_a_direct_pass(depth):
    of = trained(point(depth_=depth))
    for mode in of.model.modes:
        answers = model_of(of, mode).loglikelihood(asking("loglikelihood", PAIRS))
        for (context, continuation), (total, is_greedy) in zip(PAIRS, answers, strict=True):
            before, after = context.rstrip(" "), context[len(context.rstrip(" ")) :] + continuation
            before = TOKENIZER.encode(before) or [TOKENIZER.end_of_text]
            ids = before + TOKENIZER.encode(after)
            if context == "one\n":  # line feeds move as spaces do
                ids = TOKENIZER.encode("one\n seven ten")
            expected = directly(of, ids, len(ids) - len(before), mode)
            if context == "one\n":
                expected = directly(of, ids, len("\n seven ten"), mode)
            assert total == pytest.approx(expected[0], abs=3e-4)
            assert is_greedy == expected[1]


def test_contexts_and_continuations_are_split_as_the_harness_splits_them():
    lm = model_of(trained(point()))
    ours = lm._encoded(PAIRS)
    for (context, continuation), request in zip(PAIRS, ours, strict=True):
        if not context.strip():
            assert request.context == (lm.prefix_token_id,)
            assert request.continuation == tuple(TOKENIZER.encode(context + continuation))
            continue
        first, second = lm._encode_pair(context, continuation)
        assert (list(request.context), list(request.continuation)) == (first, second)


@pytest.mark.slow
def test_rolling_likelihood_predicts_every_token_once():
    of = trained(point(depth_="expert_choice"))
    short, long = "red blue", "seven green " * 12
    found = model_of(of).loglikelihood_rolling(
        asking("loglikelihood_rolling", [(short,), (long,), ("",)])
    )
    assert found[0] == pytest.approx(
        directly(of, [256, *TOKENIZER.encode(short)], len(short), "causal")[0], abs=3e-4
    )
    ids, total = [256, *TOKENIZER.encode(long)], 0.0
    for start in range(1, len(ids), CONTEXT):  # as many again, each with a full context
        end = min(start + CONTEXT, len(ids))
        total += directly(of, ids[:end], end - start, "causal")[0]
    assert found[1] == pytest.approx(total, abs=2e-3)
    assert found[2] == 0


@pytest.mark.slow
def test_continuations_end_where_a_task_says_and_are_greedy():
    of = trained(point(depth_="token_choice"))
    lm, prompts = model_of(of), ["red ", "blue seven", ""]
    how = {"window": CONTEXT, "end_of_text": 256, "key": jax.random.key(0)}
    how["sampling"] = Sampling(0.0)
    whole = []
    for prompt in prompts:
        ids = TOKENIZER.encode(prompt) or [256]
        drawn = decode.generate(of.params, of.model, ids, num_tokens=12, **how)
        whole.append(TOKENIZER.continuation(ids, drawn))
    asked = lambda until: [(prompt, {"until": until, "max_gen_toks": 12}) for prompt in prompts]
    assert lm.generate_until(asking("generate_until", asked([]))) == whole
    end = whole[0][3:5]
    found = lm.generate_until(asking("generate_until", asked([end, ""])))
    assert found == [text.partition(end)[0] for text in whole]


def test_what_is_longer_than_the_context_is_cut_and_said_once():
    said = []
    lm = model_of(trained(point()), say=said.append)
    long = "green " * 20
    lm.loglikelihood(asking("loglikelihood", [(long, "a"), ("red", "a"), (long, "b")]))
    assert len(said) == 1 and "48 tokens: 2 of colours; cut from the left" in said[0]
    assert lm.cut == {"colours": 2}
    short, _ = model_of(trained(point())).loglikelihood(
        asking("loglikelihood", [(long[-CONTEXT:], "a"), (long, "a")])
    )
    cut = lm.loglikelihood(asking("loglikelihood", [(long, "a")]))[0]
    # The context's own end is a space, which begins the continuation.
    assert cut[0] == pytest.approx(short[0], abs=3e-4)


@pytest.mark.slow
def test_a_way_of_drawing_that_is_not_there_is_refused_and_one_without_effect_is_not():
    lm = model_of(trained(point(num_blocks=1, recursions=1)))
    ask = lambda **how: lm.generate_until(
        asking("generate_until", [("red", {"until": ["."], "max_gen_toks": 2, **how})])
    )
    with pytest.raises(ConfigError, match=r"colours: asks for generation with num_beams=4"):
        ask(num_beams=4)
    with pytest.raises(ConfigError, match=r"colours: asks for generation with top_p: got 1\.5"):
        ask(do_sample=True, temperature=0.5, top_p=1.5)
    with pytest.raises(ConfigError, match=r"colours: asks for generation with num_tokens: got 0"):
        lm.generate_until(asking("generate_until", [("red", {"max_gen_toks": 0})]))
    assert ask(top_p=1.0) == ask() == ask(do_sample=False, temperature=0.7)
    hot = {"do_sample": True, "temperature": 9.0, "max_gen_toks": 9}
    assert ask(**hot) == ask(**hot) == ask(**hot, top_k=-1) != ask(max_gen_toks=9)
    for sure in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):  # leaves the likeliest token
        assert ask(**hot, **sure) == ask(max_gen_toks=9)


def test_progress_counts_each_request_once_however_many_parts_it_has():
    of = trained(point())
    asked = [((1,), (2,) * 3 * CONTEXT), ((1, 2), (3,)), ((1, 2), (4,)), ((1,), ())]
    told = []
    given = [requests.Request(*each) for each in asked]
    requests.score(of.params, of.model, given, model_of(of)._place, told.append)
    assert sum(told) == len(asked) and min(told) >= 0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of task files, besides those of data sets a generating and a rolling task."""
    place = tmp_path_factory.mktemp("tasks") / "tasks"
    tasks.make(DATA, place)
    rows = [{"query": "red blue", "target": "green"}, {"query": "one", "target": "seven"}]
    (place / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {
        "words": ("generate_until", "exact_match", {"until": ["\n"], "max_gen_toks": 3}),
        "texts": ("loglikelihood_rolling", "bits_per_byte", None),
    }
    for name, (kind, metric, how) in kinds.items():
        settings = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(place / "words.jsonl")}},
            "test_split": "test",
            "output_type": kind,
            "doc_to_text": "query" if how else "",
            "doc_to_target": "target" if how else "query",
            "metric_list": [{"metric": metric}],
        }
        settings |= {"generation_kwargs": how} if how else {}
        (place / f"{name}.yaml").write_text(json.dumps(settings))
    return place


ALL = (*tasks.TASKS, "words", "texts")


@pytest.mark.slow
def test_all_kinds_of_tasks_run_in_every_mode_and_say_how_deep_they_went(files):
    of = trained(point(depth_="expert_choice"))
    suite = Tasks(ALL, files)
    found, missing = variants.of(of, (1, 3), (), ((1.0, 0.5, 0.2),))
    assert not missing
    tables = [suite.scores(of, variant, lambda line: None) for variant in found]
    names = [(v.depth, v.mode, v.capacity) for v in found]
    trained_, other = None, (1.0, 0.5, 0.2)
    assert names == [
        *((depth, mode, trained_) for depth in (1, 3) for mode in ("eval", "causal")),
        *((depth, "eval", other) for depth in (1, 3)),
    ]
    for variant, table in zip(found, tables, strict=True):
        rows = {row["task"]: row for row in table}
        assert rows.keys() > set(ALL) - {"two_hop"} | {"mmlu_anatomy", "two_hop_covered"}
        assert all(json.loads(json.dumps(row)) == row for row in table)
        assert rows["words"].keys() == {*variant.names, "task", "metrics", "num_samples"}
        assert rows["mmlu"]["num_samples"] == 4 and rows["piqa"]["num_samples"] == 2
        depth = rows["hellaswag"]["mean_depth"]
        assert depth == 1 if variant.depth == 1 else 1 < depth <= 3
        assert 0 <= rows["hellaswag"]["metrics"]["acc_norm"] <= 1
        assert rows["lambada_openai"]["metrics"]["perplexity"] > 1
        assert rows["hellaswag"]["num_cut"] > 0
    by = dict(zip(names, tables, strict=True))
    assert by[1, "eval", None] == [
        {name: value for name, value in row.items() if name != "capacity"}
        for row in by[1, "eval", other]
    ]


@pytest.mark.slow
def test_a_row_of_a_task_is_what_a_direct_pass_makes_of_it(files):
    of = trained(point(depth_="expert_choice"))
    suite = Tasks(["openbookqa"], files, limit=1)
    (variant,), _ = variants.of(of, (), ("eval",))
    (row,) = suite.scores(of, variant, lambda line: None)
    docs = [json.loads(line) for line in (DATA / "openbookqa_test.jsonl").open()][:1]
    hits = []
    for doc in docs:
        ids = TOKENIZER.encode(doc["prompt"])
        totals = []
        for choice in doc["choices"]:
            after = TOKENIZER.encode(f" {choice}")
            totals.append(directly(of, ids + after, len(after), "eval")[0])
        hits.append(int(np.argmax(totals)) == doc["gold"])
    assert row["metrics"]["acc"] == np.mean(hits)


@pytest.mark.slow
def test_the_same_tasks_give_the_same_rows_again_and_on_more_devices(files):
    config = point(depth_="expert_choice")
    suite = Tasks(["piqa", "words"], files, num_fewshot=None, limit=2)
    tables = []
    for devices in (1, 1, 2):
        of = trained(config, devices)
        (variant,), _ = variants.of(of, (), ("causal",))
        tables.append(suite.scores(of, variant, lambda line: None))
    assert tables[0] == tables[1]
    for ours, theirs in zip(tables[0], tables[2], strict=True):
        assert ours["metrics"] == theirs["metrics"]


def test_examples_come_from_rows_that_are_not_scored(files):
    suite = Tasks(["mmlu"], files, num_fewshot=2)
    assert set(suite.described()["num_fewshot"].values()) == {2}
    with pytest.raises(ConfigError, match="piqa has no rows besides those that are scored"):
        Tasks(["piqa"], files, num_fewshot=1)


def test_an_unknown_task_is_told_with_those_there_are(files, tmp_path):
    with pytest.raises(ConfigError) as error:
        Tasks(["piqa", "pica"], files)
    said = str(error.value)
    assert said.startswith(f"--tasks: no task 'pica' in {files}; there is arc_challenge, arc_easy")
    assert "blimp, " in said and "blimp_" not in said and "\n" not in said
    with pytest.raises(ConfigError, match="is no folder"):
        Tasks(["piqa"], tmp_path / "none")


def test_a_broken_row_is_told_with_its_line(files, tmp_path):
    place = tmp_path / "tasks"
    place.mkdir()
    settings = json.loads((files / "piqa.yaml").read_text())
    settings["dataset_kwargs"]["data_files"]["test"] = str(place / "piqa.jsonl")
    (place / "piqa.yaml").write_text(json.dumps(settings))
    good = (files / "piqa.jsonl").read_text()
    for line, why in (
        ('{"query": "a", "choices": ["b"], "gold": 1}', "'gold' is 1, takes 0 to 0"),
        ("{", "bad JSON"),
        ('{"query": "a"}', "has the fields query, takes query/choices/gold or"),
    ):
        (place / "piqa.jsonl").write_text(good + line + "\n")
        with pytest.raises(DataError) as error:
            Tasks(["piqa"], place)
        assert str(error.value).startswith(f"{place / 'piqa.jsonl'}:3: ")
        assert why in str(error.value)
    (place / "piqa.jsonl").write_text("")
    with pytest.raises(DataError, match="0 rows"):
        Tasks(["piqa"], place)
    (place / "piqa.jsonl").unlink()
    with pytest.raises(DataError, match="does not exist"):
        Tasks(["piqa"], place)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's directory with a model that was never trained."""
    place = tmp_path_factory.mktemp("runs") / "run"
    run = tiny_run(place, "expert_choice", train={"num_steps": 2, "batch_size": 8, "seq_len": 64})
    config = run.model.sized(TOKENIZER.vocab_size)
    runs.save(run, TOKENIZER.vocab_size, draw(config), TOKENIZER, place)
    return place


@pytest.mark.slow
def test_the_harness_knows_the_model_by_its_name_and_gives_what_we_give(workdir, files):
    assert get_model("recursia") is HarnessLM
    of = runs.load(workdir, None)
    (variant,), _ = variants.of(of, (1,), ("causal",))
    (ours,) = Tasks(["piqa"], files).scores(of, variant, lambda line: None)
    from lm_eval.tasks import TaskManager

    theirs = simple_evaluate(
        model="recursia",
        model_args=f"workdir={workdir},depth=1,mode=causal",
        tasks=["piqa"],
        task_manager=TaskManager(include_path=str(files), include_defaults=False),
        torch_random_seed=None,
        bootstrap_iters=0,
    )
    assert theirs["results"]["piqa"]["acc,none"] == ours["metrics"]["acc"]
    assert theirs["config"]["depth"] == 1 and theirs["config"]["mode"] == "causal"
    for wrong, why in (("depth=1", "takes workdir=DIR"), (f"workdir={workdir},depht=1", "depht")):
        with pytest.raises(ConfigError, match=why):
            HarnessLM.create_from_arg_string(wrong)
    with pytest.raises(ConfigError, match=r"--model_args: .*5"):
        HarnessLM.create_from_arg_string(f"workdir={workdir},depth=5")


SCRIPT = """
import importlib.machinery, sys
find, finder = importlib.machinery.PathFinder.find_spec, importlib.machinery.PathFinder
there = lambda name, *rest: None if name.partition(".")[0] in {blocked} else find(name, *rest)
finder.find_spec = staticmethod(there)
sys.argv = ["lm_eval", "run", "--model", "recursia", "--model_args", "workdir={workdir}",
            "--tasks", "piqa,words", "--include_path", "{files}", "--limit", "1"]
from recursia.evaluate import __main__
code = __main__.main()
print("CODE", code, [name for name in ("torch", "transformers") if name in sys.modules])
"""


@pytest.mark.slow
def test_the_command_line_of_the_harness_needs_no_torch(workdir, files, tmp_path):
    script = SCRIPT.format(
        blocked=("torch", "transformers", "accelerate"), workdir=workdir, files=files
    )
    env = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert "CODE 0 []" in done.stdout, done.stderr[-3000:]
    assert "piqa" in done.stdout and "exact_match" in done.stdout
