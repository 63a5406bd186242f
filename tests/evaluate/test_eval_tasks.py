"""`recursia eval --tasks`: from a run's directory to a table, a JSON object and a picture."""

import json
import pathlib
import shutil
import sys

import pytest

from recursia import cli
from recursia.data.vocabulary import ByteTokenizer
from recursia.evaluate import tasks
from recursia.workdir import trained as runs
from tests.helpers.runs import hashes, tiny_run
from tests.helpers.tiny import draw

pytest.importorskip("lm_eval")
pytest.importorskip("matplotlib")

DATA = pathlib.Path(__file__).parent / "data_sets"
TOKENIZER = ByteTokenizer()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's directory with a model that was never trained, and no data."""
    place = tmp_path_factory.mktemp("runs") / "run"
    run = tiny_run(place, "expert_choice", train={"num_steps": 2, "batch_size": 8, "seq_len": 64})
    config = run.model.sized(TOKENIZER.vocab_size)
    runs.save(run, TOKENIZER.vocab_size, draw(config), TOKENIZER, place)
    return place


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of task files, made by the command."""
    place = tmp_path_factory.mktemp("tasks") / "tasks"
    assert cli.main(["data", "tasks", f"--input={DATA}", f"--output={place}"]) == 0
    return place


@pytest.fixture
def evaluate(workdir, capfd):
    """Runs `recursia eval`; returns its code, and what it printed on each stream."""

    def call(*arguments):
        capfd.readouterr()
        code = cli.main(["eval", f"--workdir={workdir}", *arguments])
        return code, *capfd.readouterr()

    return call


def refused(evaluate, *arguments, code=2, parts=()):
    """Asserts that a command is refused in one line that has all the parts."""
    found, out, err = evaluate(*arguments)
    *_, last = err.splitlines()
    assert (found, out) == (code, "") and last.startswith("recursia: ")
    assert all(part in last for part in parts), last


@pytest.mark.slow
def test_a_table_a_json_object_and_a_picture_of_the_same_scores(evaluate, files, workdir, tmp_path):
    before = hashes(workdir)
    asked = ["--tasks=piqa,blimp", f"--task_files={files}", "--depths=1,2", "--limit=1"]
    picture = tmp_path / "a.png"
    code, out, _ = evaluate(*asked, "--json", "--capacity=1,0.3", f"--picture={picture}")
    result = json.loads(out)  # nothing else is printed
    assert code == 0 and picture.stat().st_size > 0
    assert "table" not in result  # the run has no text
    names = [(r["task"], r["depth"], r["mode"], r.get("capacity")) for r in result["tasks"]]
    assert [name[1:] for name in names if name[0] == "piqa"] == [
        (1, "eval", None),
        (1, "causal", None),
        (2, "eval", None),
        (2, "causal", None),
        (1, "eval", [1.0, 0.3]),
        (2, "eval", [1.0, 0.3]),
    ]
    suite = result["suite"]
    assert suite["limit"] == 1 and suite["seed"] == 0 and suite["versions"]["lm_eval"]
    assert result["step"] == 0 and result["trained_depth"] == 2 and result["versions"]["jax"]
    assert result["config"]["model"]["depth"]["kind"] == "expert_choice"
    caches = {
        (r["depth"], str(r.get("capacity"))): r["cache_bytes_per_token"] for r in result["tasks"]
    }
    assert caches[1, "None"] < caches[2, "[1.0, 0.3]"] < caches[2, "None"]
    code, out, _ = evaluate(*asked)
    lines = out.splitlines()
    assert (
        code == 0 and sum(line.startswith(("piqa, 1 rows", "blimp, 2 rows")) for line in lines) == 2
    )
    assert "blimp_adjunct_island" not in out
    assert hashes(workdir) == before


def test_text_and_tasks_are_scored_at_once(evaluate, files, tmp_path):
    (tmp_path / "a.txt").write_text("red blue seven green ten")
    asked = ["--tasks=piqa", f"--task_files={files}", f"--text={tmp_path / 'a.txt'}", "--json"]
    code, out, _ = evaluate(*asked, "--mode=causal", "--depths=2,3")
    result = json.loads(out)
    assert code == 1 and list(result["missing"]) == ["3"]
    assert [row["depth"] for row in result["table"]] == [2]
    assert result["tokens"] == 24
    code, out, _ = evaluate(*[each for each in asked if each != "--json"], "--depths=3,2")
    assert code == 1 and out.splitlines()[-1].startswith("depth 3 is missing: ")
    assert out.count("depth 3 is missing") == 1


def test_what_is_typed_wrong_is_one_line(evaluate, files, tmp_path):
    here = f"--task_files={files}"
    refuse = lambda *arguments, **how: refused(evaluate, *arguments, **how)
    refuse("--tasks=pica", here, parts=["no task 'pica'", "arc_easy", "winogrande"])
    refuse("--tasks=,", here, parts=["takes names of tasks"])
    refuse("--tasks=piqa", f"--task_files={tmp_path / 'none'}", parts=["is no folder"])
    refuse("--limit=3", parts=["--limit: is of tasks", "give --tasks"])
    refuse("--tasks=piqa", here, "--num_fewshot=1", parts=["has no rows besides"])
    refuse("--tasks=piqa", here, "--depths=9", parts=["--depths", "9"])
    refuse("--tasks=piqa", here, "--capacity=1", parts=["--capacity=1.0", "capacity"])
    refuse("--tasks=piqa", here, "--capacity=1,2", parts=["takes a number from 0 to 1"])
    refuse("--tasks=piqa,piqa", here, "--mode=other", parts=["--mode"])
    refuse(f"--picture={files / 'piqa.yaml'}", parts=["ends in none of .png, .svg, .pdf"])
    refuse("--mode=causal", "--capacity=1,0.5", parts=["--capacity: is of mode eval"])
    refuse("--capacity=,", parts=["--capacity", "takes shares of tokens"])
    asked = ["--tasks=mmlu", here, "--num_fewshot=9"]
    refuse(*asked, parts=["--num_fewshot=9: mmlu_anatomy has", "rows for examples; take at most"])
    (tmp_path / "c.png").symlink_to(tmp_path / "nothing")
    refuse(f"--picture={tmp_path / 'c.png'}", parts=["is there already"])
    (tmp_path / "a.png").touch()
    refuse(f"--picture={tmp_path / 'a.png'}", parts=["is there already"])
    refuse(f"--picture={tmp_path / 'b' / 'a.png'}", parts=["there is no folder"])


def test_a_broken_task_file_is_told_with_its_line(evaluate, files, tmp_path):
    place = shutil.copytree(files, tmp_path / "tasks")
    settings = json.loads((place / "piqa.yaml").read_text())
    settings["dataset_kwargs"]["data_files"]["test"] = str(place / "piqa.jsonl")
    (place / "piqa.yaml").write_text(json.dumps(settings))
    (place / "piqa.jsonl").write_text((files / "piqa.jsonl").read_text() + '{"query": 1\n')
    asked = ["--tasks=piqa", f"--task_files={place}"]
    refused(evaluate, *asked, code=3, parts=[f"{place / 'piqa.jsonl'}:3: bad JSON"])


SETTINGS = {
    "no YAML": (3, lambda text: text[:40], ["piqa.yaml:", "bad YAML"]),
    "a metric": (2, lambda text: text.replace('"acc"', '"luck"'), ["piqa", "the metric 'luck'"]),
    "a template": (3, lambda text: text.replace('"query"', '"{{a.b.c}}"'), ["'a' is undefined"]),
    "a kind": (3, lambda text: text.replace("multiple_choice", "riddle"), ["'riddle'"]),
}


@pytest.mark.parametrize(("code", "change", "parts"), SETTINGS.values(), ids=SETTINGS)
def test_broken_settings_of_a_task_are_told(code, change, parts, evaluate, files, tmp_path):
    (tmp_path / "piqa.yaml").write_text(change((files / "piqa.yaml").read_text()))
    asked = ["--tasks=piqa", f"--task_files={tmp_path}"]
    refused(evaluate, *asked, code=code, parts=parts)


def test_task_files_may_be_moved(evaluate, tmp_path):
    assert cli.main(["data", "tasks", f"--input={DATA}", f"--output={tmp_path / 'a'}"]) == 0
    (tmp_path / "a").rename(tmp_path / "b")
    code, out, _ = evaluate("--tasks=piqa", f"--task_files={tmp_path / 'b'}", "--mode=eval")
    assert code == 0 and "piqa, 2 rows" in out


def test_without_its_extra_an_option_says_what_to_install(evaluate, files, monkeypatch):
    for name in [each for each in sys.modules if each.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("recursia.evaluate.task_scores", "recursia.evaluate.harness"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refused(evaluate, "--tasks=piqa", parts=["pip install 'recursia[eval]'"])
    monkeypatch.delitem(sys.modules, "recursia.evaluate.picture", raising=False)
    monkeypatch.delattr("recursia.evaluate.picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(evaluate, "--picture=new.png", parts=["pip install 'recursia[plot]'"])


def test_nothing_of_a_broken_data_set_is_left(files, tmp_path, capsys):
    source = shutil.copytree(DATA, tmp_path / "source")
    with (source / "blimp.jsonl").open("a") as file:
        file.write("[]\n")
    output = tmp_path / "out"
    assert cli.main(["data", "tasks", f"--input={source}", f"--output={output}"]) == 3
    assert f"{source / 'blimp.jsonl'}:5: a JSON list" in capsys.readouterr().err
    assert not output.exists() and {path.name for path in tmp_path.iterdir()} == {"source"}
    written = " ".join(path.stem for path in files.glob("*.yaml"))  # a tag has files of its parts
    assert all(name in written for name in tasks.TASKS)
