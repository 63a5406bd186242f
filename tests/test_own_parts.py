"""What a user writes in files of their own is found by its path, and refused in one line."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import pytest

from recursia import cli, config, kinds
from recursia.data import named
from recursia.data.prepare import Options, prepare
from recursia.depth.policy import Aux, Policy
from recursia.errors import ConfigError
from recursia.laws import LAWS, check, statements
from recursia.laws.numbers import draw
from tests.helpers import own_parts, runs
from tests.helpers.tiny import tiny

START = "import dataclasses\nfrom recursia.depth.policy import Policy\n"
FROZEN = "@dataclasses.dataclass(frozen=True)\n"
RUN = "    def run(self, *_): ...\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, the current one; modules that are found there are forgotten at the end."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def refusal(kind, **typed):
    with pytest.raises(ConfigError) as error:
        config.load("looped:tiny", {"depth.kind": kind, **typed})
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_part_of_ones_own_stands_wherever_a_kind_is_named(here):
    typed = own_parts.write(here, "parts_a")
    typed |= {"model.depth.sign": "minus", "model.depth.factors": "[0.5, 2]"}
    run = config.load("looped:tiny", typed)
    assert {kinds.BASES[field.split(".")[-2]] for field in typed if field.endswith(".kind")} == set(
        kinds.BASES.values()
    )
    assert run.model.depth.sign == "minus" and run.model.depth.factors == (0.5, 2.0)
    assert len(set(run.model.schedule.owners.tolist())) == 4
    saved = here / "run" / "config.json"
    saved.parent.mkdir()
    saved.write_text(json.dumps(config.to_dict(run)))
    assert config.load("run", {}) == run
    values = config.to_dict(run)["model"]
    assert values["depth"]["kind"] == "parts_a.Depth"
    listed = {field.path: field for field in config.fields(run)}
    assert listed["model.depth.sign"].meaning == "a choice."
    assert listed["model.depth.kind"].type.endswith("of your own")


def test_a_module_with_one_part_need_not_name_it(here):
    (here / "single.py").write_text(f"{START}{FROZEN}class Only(Policy):\n{RUN}")
    run = config.load("looped:tiny", {"depth.kind": "single"} | {"depth.kind": "single.Only"})
    (here / "package").mkdir()
    (here / "package" / "inner.py").write_text((here / "single.py").read_text())
    inner = config.load("looped:tiny", {"depth.kind": "package.inner"})
    assert kinds.kind_of(run.model.depth) == "single.Only"
    assert kinds.kind_of(inner.model.depth) == "package.inner.Only"


WRONG = {
    "no module": ("", "absent.Half", "no module 'absent'"),
    "no such name": (START, "own.Half", "no such name in"),
    "another class": (START, "own.dataclasses.Field", "is no subclass of recursia.depth.policy"),
    "none in it": (START, "own.inner", "no such name in"),
    "raises": ("x = 1\ny = 1 / 0\n", "own.Half", "own.py: line 2: ZeroDivisionError"),
    "is no Python": ("x = (\n", "own.Half", "SyntaxError"),
    "ends": ("raise SystemExit(3)\n", "own.Half", "SystemExit: 3"),
    "no dataclass": (f"{START}class Half(Policy):\n{RUN}", "own.Half", "frozen=True"),
    "is abstract": (f"{START}{FROZEN}class Half(Policy): ...\n", "own.Half", "not define run"),
    "no setting": (
        f"{START}{FROZEN}class Half(Policy):\n    f: list = None\n{RUN}",
        "own.Half",
        "'f' is no setting",
    ),
    "unknown type": (
        f"{START}{FROZEN}class Half(Policy):\n    f: 'Absent' = None\n{RUN}",
        "own.Half",
        "type of a field cannot be read",
    ),
    "called kind": (
        f"{START}{FROZEN}class Half(Policy):\n    kind: int = 0\n{RUN}",
        "own.Half",
        "'kind' cannot be a field",
    ),
    "its check raises": (
        f"{START}{FROZEN}class Half(Policy):\n    def __post_init__(self):\n        0 / 0\n{RUN}",
        "own.Half",
        "line 6: ZeroDivisionError",
    ),
    "a module of Python": ("", "antigravity.Half", "is a module of Python itself"),
    "no path": ("", "..own", "is no dotted path"),
    "a path of files": ("", "./own.py", "is no dotted path"),
    "no dot": ("", "own", "or MODULE.CLASS of your own"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_part_is_refused_in_one_line(here, name):
    source, path, message = WRONG[name]
    (here / "own.py").write_text(source)
    assert message in refusal(path)


def test_a_module_with_two_parts_names_both(here):
    two = "".join(f"{FROZEN}class {name}(Policy):\n{RUN}" for name in ("One", "Two"))
    (here / "folder").mkdir()
    (here / "folder" / "two.py").write_text(START + two)
    assert "folder.two.One and folder.two.Two; name one of them" in refusal("folder.two")


SOURCES = """
import dataclasses
from recursia.data.source import Source, in_memory


@dataclasses.dataclass(frozen=True)
class Stanzas(Source):
    SUFFIXES = (".poem",)

    def records(self, text_field):
        with open(self.path, encoding="utf-8") as file:
            yield from map(in_memory, file.read().split("\\n\\n"))


class Nothing(Source): ...
"""


def test_a_source_of_ones_own_reads_what_it_is_named_before(here):
    """In the processes that tokenise too; a run's data takes it, and its manifest names it."""
    (here / "stanzas.py").write_text(SOURCES)
    (here / "poems").mkdir()
    for name in ("a.poem", "b.poem", "c.txt"):
        (here / "poems" / name).write_text("red rose\n\nblue rose\n\nred sky")
    found = prepare(["stanzas.Stanzas:poems"], "made", Options("byte", validation_fraction=0))
    assert found["splits"]["train"]["documents"] == 6
    names = [source["name"] for source in found["sources"]]
    assert names == ["stanzas.Stanzas:a.poem", "stanzas.Stanzas:b.poem"]
    run = config.load("looped:tiny", {"data.text": "stanzas.Stanzas:poems/*.poem,hf:a/b"})
    assert run.data.text == (f"stanzas.Stanzas:{here}/poems/*.poem", "hf:a/b")
    for wrong in ("stanzas.Nothing:poems", "absent.Lines:poems/a.poem"):
        with pytest.raises(ConfigError, match=r"^(stanzas.Nothing: does not|absent.Lines: no mod)"):
            named.expand([wrong])
    (here / "v1.5:x.txt").write_text("a file may be called so")
    assert [each.path for each in named.expand(["v1.5:x.txt"])] == ["v1.5:x.txt"]


TARGETS = """
import dataclasses
from recursia.launch.targets.slurm import Slurm
from recursia.launch.targets.target import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Queue(Slurm):
    def script(self, job):
        return "module load python\\n" + super().script(job)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Typed(Queue):
    colour: str = "red"


class Nothing(Target): ...
"""


def test_a_target_of_ones_own_is_named_by_its_path(here, capsys):
    (here / "queues.py").write_text(TARGETS)
    words = ["--config=looped:tiny", "--workdir=gs://b/run", "--dry_run", "--topology=cpu:2"]
    words += ["--config.data.path=gs://b/data", "--no_preflight"]
    assert cli.main(["launch", "--target=queues.Queue", "--target.partition=long", *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("module load python\n") and "--partition=long" in said
    for name, why in (("Typed", "'colour'"), ("Nothing", "define script"), ("Absent", "no such")):
        assert cli.main(["launch", f"--target=queues.{name}", *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"queues.{name}: " in said and why in said


MARK = "import pathlib\npathlib.Path(r'{}').touch()\n"
HOLDERS = {
    "a run": ("config.json", '{"model": {}, "data": {}, "train": {}}'),
    "a model": ("config.json", '{"model_type": "llama"}'),
    "a sweep": ("sweep.json", "{}"),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize(
    ("place", "path"), [("runs/given/code", "runs.given.code.evil.X"), ("runs/given", "evil.X")]
)
def test_nothing_in_the_directory_of_a_run_is_executed(here, monkeypatch, holder, place, path):
    """Neither by a path through its folders, nor from inside it."""
    given = here / "runs" / "given"
    (given / "code").mkdir(parents=True)
    name, content = HOLDERS[holder]
    (given / name).write_text(content)
    touched = here / "executed"
    (here / place / "evil.py").write_text(MARK.format(touched))
    if path == "evil.X":
        monkeypatch.chdir(given)
    message = refusal(path)
    assert "holds a run" in message and not touched.exists()
    if path == "evil.X":  # as where Python itself has put it on its path
        monkeypatch.syspath_prepend(str(given))
        assert "nothing there is executed" in refusal(path) and not touched.exists()
        monkeypatch.chdir(here)
    (given / name).unlink()
    with pytest.raises(ConfigError):
        config.load("looped:tiny", {"depth.kind": path})
    assert touched.exists()  # so this would have executed it


def test_a_record_names_ones_own_parts_and_imports_no_others(here):
    values = config.to_dict(config.load("looped:tiny", {}))
    values["model"]["depth"] = {"kind": "absent.Half", "num_recursions": 4}
    (here / "run").mkdir()
    (here / "run" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"depth.kind: absent.Half: no module 'absent' in"):
        config.load("run", {})


def test_a_configuration_imports_the_file_beside_it(here):
    (here / "beside.py").write_text("LAYERS = 4\n")
    text = runs.FILE.format(json.dumps(runs.values(here, model={"num_layers": 0})))
    text = text.replace(".lock()", "").replace("    return ", "    found = ")
    text += "    found.model.num_layers = LAYERS\n    return found\n"
    (here / "mine.py").write_text(f"from beside import LAYERS\n{text}")
    assert config.load("mine.py", {}).model.num_layers == 4


@dataclasses.dataclass(frozen=True)
class Peeking(Policy):
    """Reads the last token of the row, and says that it does not."""

    def run(self, stack, params, x, context, call):
        x, report = stack.walk(x + 0.1 * x[:, -1:], context)
        return x, Aux({}, {}, jnp.full(x.shape[:2], self.num_recursions), None, report)


def test_a_law_that_is_broken_says_so_and_one_that_raises_too():
    plain = tiny(recursions=2, blocks=1)
    peeking = dataclasses.replace(plain, depth=Peeking(2))
    assert "earlier logits differ" in statements.causality(peeking, draw(peeking))
    assert statements.causality(plain, draw(plain)) == ""
    assert set(LAWS) >= {"flops", "gradients", "padding", "sharing", "decoding", "documents"}


@pytest.mark.slow
def test_every_law_holds_for_a_shipped_model_and_is_broken_by_a_wrong_one(here, capsys):
    plain = tiny(recursions=2, blocks=1)
    assert [str(verdict) for verdict in check(plain) if verdict.wrong != ""] == []
    peeking = dataclasses.replace(plain, depth=Peeking(2))
    broken = {verdict.law for verdict in check(peeking) if verdict.wrong}
    assert broken == {"causality", "documents", "padding", "decoding"}
    source = f"{START}{FROZEN}class Half(Policy):\n    def run(self, *_):\n        return 1 / 0\n"
    (here / "half.py").write_text(source)
    assert cli.main(["laws", "--config=looped:tiny", "--config.depth.kind=half.Half"]) == 1
    assert "BROKEN: line 6: ZeroDivisionError" in capsys.readouterr().out


SWEEP = """

def sweep(add):
    for rate in (1e-3, 1e-2):
        add(**{"optimizer.learning_rate": rate})
"""


@pytest.mark.exhaustive  # in CI the page docs/extending.md does so
def test_parts_of_ones_own_are_found_through_the_whole_life_of_a_run(here):
    """From a folder with two files; each command is a process of its own."""
    typed = own_parts.write(here, "parts_b")
    (here / "train.txt").write_text(runs.prose(0, 400))
    (here / "validation.txt").write_text(runs.prose(1, 60))
    few = {"train": {"num_steps": 2, "batch_size": 8, "seq_len": 16}}
    runs.write_config(here / "mine.py", runs.values(here, "fixed", **few))
    with (here / "mine.py").open("a") as file:
        file.write(SWEEP)
    parts = [f"--config.{field}={path}" for field, path in typed.items()]

    def recursia(*words):
        command = [pathlib.Path(sys.executable).with_name("recursia"), *words]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    train = ["train", "--config=mine.py", *parts, "--workdir=run"]
    recursia(*train)
    recursia("train", "--config=run", "--workdir=run", "--config.train.num_steps=3")
    assert "depth" in recursia("eval", "--workdir=run", "--num_batches=1")
    recursia("generate", "--workdir=run", "--prompt=red", "--num_tokens=4")
    recursia("replay", "--workdir=run", "--step=3")
    recursia("budget", "--config=run", "--versus=looped:tiny")
    recursia("ckpt", "verify", "--workdir=run")
    recursia("sweep", "--config=mine.py", "--workdir=sweep", *parts)
    assert json.loads(recursia("sweep", "results", "--workdir=sweep", "--json"))
    kept = json.loads((here / "run" / "config.json").read_text())
    assert kept["model"]["depth"]["kind"] == "parts_b.Depth"
    exported = subprocess.run(
        [pathlib.Path(sys.executable).with_name("recursia"), "convert", "export",
         "--workdir=run", "--output=hf"], cwd=here, capture_output=True, text=True,
    )  # fmt: skip
    assert exported.returncode == 2 and "modelling file has no 'parts_b." in exported.stderr
