"""The door of configurations: what is typed becomes settings, or one line that says why not."""

import json
import os
import pathlib
import sys

import pytest

from recursia import config, kinds, settings
from recursia.errors import ConfigError
from tests.helpers.refusals import refused
from tests.helpers.runs import values, write_config

HERE, BUNDLED = pathlib.Path.cwd(), "bundled:train"
FOLDER = pathlib.Path("no-data-is-read")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "tiny.py", values(FOLDER))


def load(path, *typed):
    return config.load(path, dict(item.split("=", 1) for item in typed))


def test_what_is_not_typed_keeps_its_value(path):
    plain = config.to_dict(load(path))
    changed = config.to_dict(load(path, "train.num_steps=9"))
    assert changed.pop("train") == plain.pop("train") | {"num_steps": 9}
    assert changed == plain


READ = [
    ("train.num_steps=9", lambda run: run.train.num_steps, 9),
    ("optimizer.learning_rate=1", lambda run: run.optimizer.learning_rate, 1.0),
    ("optimizer.learning_rate=1e-3", lambda run: run.optimizer.learning_rate, 1e-3),
    ("log.sinks=", lambda run: run.log.sinks, ()),
    ("log.sinks=tensorboard,wandb", lambda run: run.log.sinks, ("tensorboard", "wandb")),
    ("data.cross_document_attention=False", lambda run: run.data.cross_document_attention, False),
    ("data.cross_document_attention=true", lambda run: run.data.cross_document_attention, True),
    ("model.depth.capacity=(1,0.25)", lambda run: run.model.depth.capacity, (1.0, 0.25)),
    ("depth.capacity=[1.0, 0.5]", lambda run: run.model.depth.capacity, (1.0, 0.5)),
    ("depth.capacity=None", lambda run: run.model.depth.capacity, (1.0, 0.5)),
    ("block.mlp_dim=48", lambda run: run.model.block.feedforward.mlp_dim, 48),
    ("kv.kv_sharing=first_recursion", lambda run: run.model.kv.kv_sharing, "first_recursion"),
    ("embed.is_tied=false", lambda run: run.model.embed.is_tied, False),
    ("data.path=a,b", lambda run: run.data.path, (f"{HERE}/a", f"{HERE}/b")),
    ("data.path=a", lambda run: run.data.path, (f"{HERE}/a",)),
    ("data.path=('a','b c')", lambda run: run.data.path, (f"{HERE}/a", f"{HERE}/b c")),
    ("data.path=~/x", lambda run: run.data.path, (f"{pathlib.Path.home()}/x",)),
    ("data.text=*.txt,bundled:train", lambda run: run.data.text, (f"{HERE}/*.txt", BUNDLED)),
    ("data.text=gs://bucket/x", lambda run: run.data.text, ("gs://bucket/x",)),
    ("data.tokenizer=123", lambda run: run.data.tokenizer, f"{HERE}/123"),
    ("data.tokenizer=bpe:300", lambda run: run.data.tokenizer, "bpe:300"),
    ("train.init_from=runs/a", lambda run: run.train.init_from, f"{HERE}/runs/a"),
    ("distill.teacher=~/a", lambda run: run.distill.teacher, f"{pathlib.Path.home()}/a"),
    ("train.num_steps=1e3", lambda run: run.train.num_steps, 1000),
    ("train.num_steps=1_000", lambda run: run.train.num_steps, 1000),
    ("train.num_steps=1000.0", lambda run: run.train.num_steps, 1000),
    ("train.seed=4294967295", lambda run: run.train.seed, 4294967295),
    ("eval.prompts=Hello, world", lambda run: run.eval.prompts, ("Hello, world",)),
    ("eval.prompts= 1984", lambda run: run.eval.prompts, (" 1984",)),
    ("eval.prompts=1984", lambda run: run.eval.prompts, ("1984",)),
    ("eval.prompts=None", lambda run: run.eval.prompts, ("None",)),
    ("eval.prompts=[1, 2]", lambda run: run.eval.prompts, ("[1, 2]",)),
    ("eval.prompts=['a, b', ' c']", lambda run: run.eval.prompts, ("a, b", " c")),
    ("topology=none", lambda run: run.topology, "none"),
    ("optimizer.trainable=depth, core", lambda run: run.optimizer.trainable, ("depth", "core")),
    ("eval.prompts=", lambda run: run.eval.prompts, ()),
    ("varies.norms=recursion", lambda run: run.model.varies, (("norms", "recursion"),)),
    ("model.varies.norms=((0,),(1,))", lambda run: run.model.varies, (("norms", ((0,), (1,))),)),
    ("mesh.fsdp=2", lambda run: run.mesh.fsdp, 2),
    ("model.depth=fixed", lambda run: kinds.kind_of(run.model.depth), "fixed"),
    ("sharing=none", lambda run: run.model.sharing, "none"),
    ("train.remat=block", lambda run: run.train.remat, "block"),
]


@pytest.mark.parametrize(("typed", "get", "value"), READ, ids=[typed for typed, *_ in READ])
def test_what_is_typed_is_read_by_the_type_of_its_field(path, typed, get, value):
    got = get(load(path, typed))
    assert got == value and type(got) is type(value)
    plain = json.loads(json.dumps(config.to_dict(load(path, typed))))
    assert config.build(settings.Run, plain, "config") == load(path, typed)


def test_a_depth_policy_is_changed_with_its_fields():
    run = load("mor:tiny", "model.depth.kind=fixed")
    assert kinds.kind_of(run.model.depth) == "fixed" and run.model.depth.num_recursions == 3
    with refused(ConfigError, "config.model.depth.alpha"):
        load("mor:tiny", "model.depth.kind=fixed", "depth.alpha=0.1")
    with refused(ConfigError, "config.model.weights.rank", "an int"):
        load("mor:tiny", "weights.kind=lora")


def test_a_kind_that_is_typed_says_what_it_takes_and_lacks():
    missing = ("feedforward.num_experts: must be set", "and so must top_k", "expert_dim")
    takes = ("'softmax_moe' takes num_experts, top_k, expert_dim", "not mlp_dim")
    with refused(ConfigError, *missing, *takes):
        load("vanilla:tiny", "block.feedforward=softmax_moe")
    typed = ("block.num_experts=4", "block.top_k=2", "block.expert_dim=32")
    for kind in ("block.feedforward=softmax_moe", "model.block.feedforward.kind=softmax_moe"):
        found = load("vanilla:tiny", *typed, kind).model.block
        assert found.feedforward.num_experts == 4 and found.mixer.num_heads == 4


def test_a_field_of_a_part_may_be_named_without_it():
    short = load("vanilla:tiny", "block.num_heads=2", "block.kind=sandwich_norm", "block.mlp_dim=9")
    full = load(
        "vanilla:tiny",
        "model.block.mixer.num_heads=2",
        "model.block=sandwich_norm",
        "model.block.feedforward.mlp_dim=9",
    )
    assert short == full
    assert [field.path for field in config.fields(short, "block.mlp_dim")] == [
        "model.block.feedforward.mlp_dim"
    ]
    with refused(ConfigError, "config.block.mixer.num_heads", "config.block.num_heads"):
        load("vanilla:tiny", "block.num_heads=2", "block.mixer.num_heads=2")


# What is typed, and what the one line that answers names: the field, what it got, the remedy.
WRONG = [
    ("modle.x=1", "config.modle | did you mean 'model'? | model, data"),
    ("train.num_stps=3", "config.train.num_stps | did you mean 'num_steps'?"),
    ("quux.x=3", "config.quux | model, data"),
    ("model.dept=3", "config.model.dept | did you mean 'depth'?"),
    ("depth.alhpa=3", "config.model.depth.alhpa | did you mean 'alpha'?"),
    ("train.num_steps=1e3.5", "config.train.num_steps | '1e3.5' | an integer"),
    ("train.num_steps=nan", "config.train.num_steps | 'nan' | an integer"),
    ("eval.temperature=nan", "config.eval.temperature | 'nan' | a finite number"),
    ("data.weights=(1, nan)", "config.data.weights | '(1, nan)' | a list, each a number"),
    ("data.path=~no_such_user/x", "config.data.path | '~no_such_user/x' | a path"),
    ("=3", "config."),
    ("train.num_steps=abc", "config.train.num_steps | 'abc' | an integer"),
    ("train.num_steps=1.5", "config.train.num_steps | 1.5 | an integer"),
    ("train.num_steps=", "config.train.num_steps | '' | an integer"),
    ("train.num_steps=True", "config.train.num_steps | True | an integer"),
    ("train.num_steps=0", "config.train.num_steps | 0 | at least 1"),
    ("train=3", "config.train | '3' | num_steps"),
    ("train.num_steps.x=3", "--config.train.num_steps.x | 'num_steps' | 6"),
    ("optimizer.learning_rate=fast", "config.optimizer.learning_rate | 'fast' | a number"),
    ("optimizer.learning_rate=-1", "config.optimizer.learning_rate | -1.0 | at least 0"),
    ("optimizer.b1=1", "config.optimizer.b1 | 1.0 | 0 or more | less than 1"),
    ("optimizer.learning_rate=1e400", "config.optimizer.learning_rate | 1e400 | a finite"),
    ("train.seed=4294967296", "config.train.seed | 4294967296 | 0 to 4294967295"),
    ("depth.num_recursions=0", "config.model.depth.num_recursions | 0 | 1 to 10000"),
    ("eval.prompts=\udcff", "config.eval.prompts | '\\udcff' | text in UTF-8"),
    ("embed.is_tied=maybe", "config.model.embed.is_tied | 'maybe' | true or false"),
    ("log.tensorboard=true", "config.log.tensorboard | no such field | an entry of log.sinks"),
    ("schedule.kind=linear", "config.schedule.kind | 'constant' | 'cosine' | 'wsd'"),
    ("eval.prompts=['a','']", "config.eval.prompts | empty"),
    ("data.seed=-1", "config.data.seed | -1 | 0 to 4294967295"),
    ("data.text=", "config.data.path | data.path"),
    ("data.weights=(1.0,2.0)", "config.data.weights | 2 | 0 paths"),
    ("model.sharing=cicle", "config.model.sharing | 'cicle' | 'cycle' | 'sequence'"),
    ("model.sharing=sequence", "config.model.depth | expert_choice | depth.kind 'fixed'"),
    ("model.num_layers=5", "config.model.num_layers | 5 layers | 4 or 6"),
    ("model.num_layers=1", "config.model.num_layers | 1 layers | 2"),
    ("model.dtype=float16", "config.model.dtype | 'float16' | 'float32' | 'bfloat16'"),
    ("block.kind=prenorm", "config.model.block.kind | block 'prenorm' | 'pre_norm'?"),
    ("block.kind=llama", "config.model.block.kind | 'llama' | 'pre_norm' | mixer"),
    (
        "block.init.std=1",
        "config.block.init.std | model.block.mixer.init.std",
    ),
    ("block.std=1", "config.block.std | model.block.mixer.init.std | model.block.feed"),
    ("block.mixer=gqa", "config.model.block.mixer.kind | mixer 'gqa' | grouped_query, momha"),
    ("depth.kind=acts", "config.model.depth.kind | depth 'acts' | did you mean 'act'?"),
    ("depth.kind=routing", "config.model.depth.kind | depth 'routing'"),
    ("block.head_dim=7", "config.model.block.mixer.head_dim | 7 | an even number"),
    ("block.num_kv_heads=3", "config.model.block.mixer.num_heads | 2 query heads | multiple of 3"),
    ("depth.capacity=(1.0,)", "config.model.depth.capacity | 1 | num_recursions 2"),
    ("depth.capacity=(0.5,1.0)", "config.model.depth.capacity | (0.5, 1.0) | never grow"),
    ("depth.capacity=(1.0,0.0)", "config.model.depth.capacity | (1.0, 0.0) | (0, 1]"),
    ("depth.capacity=0.5", "config.model.depth.capacity | 0.5 | a list, each a number"),
    ("varies.norms=colour", "config.model.varies.norms | 'colour' | 'recursion+block'"),
    ("varies.norm=one", "config.model.varies | slot 'norm' | norms, attention"),
    ("mesh.data=0", "config.mesh.data | 0 | a number from 1, or -1"),
    ("mesh.rules.embed=tpu", "config.mesh.rules.embed | 'tpu'"),
    ("mesh.rules.mlp=expert", "config.mesh.rules.mlp | ('expert',) | 'expert'"),
    ("optimizer.kind=adam", "config.optimizer.kind | 'adam' | did you mean 'adamw'"),
    ("optimizer.rank=1", "config.optimizer.rank | learning_rate"),
    ("distill.weight=1.5", "config.distill.weight | 1.5"),
    ("distill.kind=l2", "config.distill.kind | 'l2' | 'forward_kl' or"),
    ("mesh.rules.batch=('data',)", "config.mesh.rules.batch | ('data',)"),
]


@pytest.mark.parametrize(("typed", "parts"), WRONG, ids=[typed for typed, _ in WRONG])
def test_a_wrong_value_is_refused_in_one_line_with_field_and_remedy(path, typed, parts):
    with refused(ConfigError, *parts.split(" | ")) as refusal:
        load(path, typed)
    assert refusal.value.exit_code == 2


FILES = {
    "a file that is not there": (None, "/tiny.py; choices are"),
    "no get_config": ("x = 1\n", "get_config"),
    "a dict": ("def get_config():\n    return {}\n", "get_config"),
    "no Python": ("def get_config(:\n", "SyntaxError"),
    "an error": ("def get_config():\n\n    return 1 / 0\n", "line 3: ZeroDivisionError"),
    "a missing module": ("import no_such_module\n", "line 1: ModuleNotFoundError"),
    "a required preset": ("def get_config(preset):\n    return 1\n", "tiny.py:PRESET"),
    "presets that are no names": ("PRESETS = 3\n\ndef get_config(p):\n    pass\n", "PRESETS is 3"),
    "an exit": ("raise SystemExit('no')\n", "line 1: SystemExit: no"),
    "a field after the lock": (
        "from ml_collections import ConfigDict\n\ndef get_config():\n"
        "    config = ConfigDict().lock()\n    config.modle = 1\n    return config\n",
        "line 5: AttributeError",
    ),
    "a part that is missing": (
        "from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict()\n",
        "config.model: must be set",
    ),
}


@pytest.mark.parametrize(("source", "part"), FILES.values(), ids=FILES)
def test_a_file_that_gives_no_configuration_is_refused_in_one_line(tmp_path, source, part):
    if source is not None:
        (tmp_path / "tiny.py").write_text(source)
    with refused(ConfigError, part):
        load(str(tmp_path / "tiny.py"))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mor:tinny", "tinny'; did you mean 'tiny'?"),
        ("mr:tiny", "did you mean 'mor'?"),
        ("mor", "mor:PRESET; choices are demo, tiny, 135m"),
        ("~no_such_user/x.py", "home directory"),
        ("x" * 5000 + ".py", "too long"),
        ("base:tiny", "no file base.py"),
        ("", "albert, "),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_there(name, part):
    with refused(ConfigError, part):
        load(name)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "tiny.py"
    write_config(path, values(FOLDER))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(str(path)).train.num_steps == 6


def test_a_file_that_was_changed_within_a_second_is_read_again(tmp_path, monkeypatch):
    """And nothing is left beside it: bytecode of Python tells neither size nor second apart."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    path = tmp_path / "tiny.py"
    for steps in (6, 7):
        write_config(path, values(FOLDER, train={"num_steps": steps}))
        os.utime(path, (1e9, 1e9))
        assert load(str(path)).train.num_steps == steps
    assert list(tmp_path.iterdir()) == [path]


def test_a_trained_run_keeps_the_kind_of_its_depth():
    run = load("mor:tiny")
    assert config.override(run, {"depth.alpha": "0.3"}).model.depth.alpha == 0.3
    for field in ("depth.kind", "model.depth.kind", "depth", "train.num_steps", "block.mlp_dim"):
        with refused(ConfigError, f"config.{field}: only fields of depth"):
            config.override(run, {field: "fixed"})


def test_data_that_is_typed_replaces_all_of_the_files(tmp_path):
    of = lambda **typed: config.load("mor:tiny", {f"data.{k}": v for k, v in typed.items()}).data
    preset, mine = of(), str(tmp_path / "mine.txt")
    assert preset.text and preset.validation_text
    assert (of(text=mine).text, of(text=mine).validation_text) == ((mine,), ())
    assert of(text=mine, validation_text=mine).validation_text == (mine,)
    prepared = of(path=mine)
    assert (prepared.path, prepared.text, prepared.validation_text) == ((mine,), (), ())
    assert of(validation_text=mine).text == preset.text
    assert of(text=mine).tokenizer == preset.tokenizer
    with refused(ConfigError, "config.data.text", "data.path"):
        of(path=mine, text=mine)


@pytest.mark.parametrize(
    ("log", "sinks"),
    [
        ({"tensorboard": True}, ("tensorboard",)),
        ({"tensorboard": False, "sinks": ["wandb"]}, ("wandb",)),
        ({"tensorboard": True, "sinks": ["wandb"]}, ("tensorboard", "wandb")),
        ({"sinks": []}, ()),
    ],
)
def test_the_record_of_an_older_run_is_read_as_it_was_meant(tmp_path, log, sinks):
    values = config.to_dict(config.load("mor:tiny", {})) | {"log": log}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert config.load(str(tmp_path), {}).log.sinks == sinks
    assert config.load(str(tmp_path), {"log.sinks": ""}).log.sinks == ()
