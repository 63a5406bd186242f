"""The door of configurations: what is typed becomes settings, or one line that says why not."""

import json
import pathlib
import re

import ml_collections
import pytest

from recursia import config, model, params, presets, settings
from recursia.errors import ConfigError
from tests.helpers.runs import values, write_config

HERE, BUNDLED = pathlib.Path.cwd(), "bundled:train"
FOLDER = pathlib.Path("no-data-is-read")
SHIPPED = ("vanilla", "recursive", "mor")
PRESETS = ("demo", "tiny", "135m", "360m", "730m", "1.7b")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "tiny.py", values(FOLDER))


def load(path, *typed):
    return config.load(path, dict(item.split("=", 1) for item in typed))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_preset_is_locked_loads_and_survives_json(name, preset):
    given = presets.read(f"{name}:{preset}")
    assert isinstance(given, ml_collections.ConfigDict) and given.is_locked
    run = config.load(f"{name}:{preset}", {})
    plain = json.loads(json.dumps(config.to_dict(run)))
    assert config.build(settings.Run, plain, "config") == run
    built = run.model.sized(run.model.vocab_size or 257)
    assert params.count(model.specs(built)) > 0
    assert built.schedule.num_steps + sum(built.ends.values()) == run.model.num_layers
    assert built.schedule.num_recursions == (1 if name == "vanilla" else 3)
    assert run.model.depth.num_recursions == built.schedule.num_recursions


def test_a_larger_preset_has_more_parameters():
    sizes = [
        params.count(model.specs(config.load(f"vanilla:{p}", {}).model.sized(49152)))
        for p in PRESETS
        if p not in ("demo", "tiny")
    ]
    assert sizes == sorted(sizes)
    named = (135e6, 362e6, 730e6, 1.71e9)
    assert all(abs(n / size - 1) < 0.1 for n, size in zip(sizes, named, strict=True))


def test_what_is_not_typed_keeps_its_value(path):
    plain = config.to_dict(load(path))
    changed = config.to_dict(load(path, "train.num_steps=9"))
    assert changed.pop("train") == plain.pop("train") | {"num_steps": 9}
    assert changed == plain


READ = [
    ("train.num_steps=9", lambda run: run.train.num_steps, 9),
    ("optimizer.learning_rate=1", lambda run: run.optimizer.learning_rate, 1.0),
    ("optimizer.learning_rate=1e-3", lambda run: run.optimizer.learning_rate, 1e-3),
    ("log.tensorboard=False", lambda run: run.log.tensorboard, False),
    ("log.tensorboard=true", lambda run: run.log.tensorboard, True),
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
    ("model.depth=fixed", lambda run: settings.kind(run.model.depth), "fixed"),
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
    assert settings.kind(run.model.depth) == "fixed" and run.model.depth.num_recursions == 3
    with pytest.raises(ConfigError, match=r"config\.model\.depth\.alpha: no such field"):
        load("mor:tiny", "model.depth.kind=fixed", "depth.alpha=0.1")
    with pytest.raises(ConfigError, match=r"config\.model\.weights\.rank: must be set \(an int"):
        load("mor:tiny", "weights.kind=lora")


def test_a_kind_that_is_typed_says_what_it_takes_and_lacks():
    with pytest.raises(ConfigError) as refusal:
        load("vanilla:tiny", "block.feedforward=softmax_moe")
    missing, _, takes = str(refusal.value).partition("; ")
    assert missing == (
        "config.model.block.feedforward.num_experts: must be set (an integer), and so must top_k "
        "(an integer), expert_dim (an integer)"
    )
    takes, _, gone = takes.partition(", and not ")
    assert takes.startswith("feedforward 'softmax_moe' takes num_experts, top_k, expert_dim")
    assert gone == "mlp_dim"
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
    with pytest.raises(
        ConfigError, match=r"config\.block\.mixer\.num_heads: is config\.block\.num_h"
    ):
        load("vanilla:tiny", "block.num_heads=2", "block.mixer.num_heads=2")


# What is typed, and the parts of the one line that answers: the field, what it got, the remedy.
WRONG = [
    ("modle.x=1", "config.modle: no such field", "did you mean 'model'?", "There is model, data"),
    ("train.num_stps=3", "config.train.num_stps", "did you mean 'num_steps'?"),
    ("quux.x=3", "config.quux: no such field; there is model, data"),
    ("model.dept=3", "config.model.dept", "did you mean 'depth'?"),
    ("depth.alhpa=3", "config.model.depth.alhpa", "did you mean 'alpha'?"),
    ("train.num_steps=1e3.5", "config.train.num_steps: got '1e3.5', takes an integer"),
    ("train.num_steps=nan", "config.train.num_steps: got 'nan', takes an integer"),
    ("eval.temperature=nan", "config.eval.temperature: got 'nan', takes a finite number"),
    ("data.weights=(1, nan)", "config.data.weights: got '(1, nan)', takes a list, each a number"),
    ("data.path=~no_such_user/x", "config.data.path: got '~no_such_user/x', takes a path"),
    ("=3", "config.: no such field"),
    ("train.num_steps=abc", "config.train.num_steps: got 'abc', takes an integer"),
    ("train.num_steps=1.5", "config.train.num_steps: got 1.5, takes an integer"),
    ("train.num_steps=", "config.train.num_steps: got '', takes an integer"),
    ("train.num_steps=True", "config.train.num_steps: got True, takes an integer"),
    ("train.num_steps=0", "config.train.num_steps: got 0, takes at least 1"),
    ("train=3", "config.train: got '3', takes a section with num_steps"),
    ("train.num_steps.x=3", "--config.train.num_steps.x: 'num_steps' is 6, not a section"),
    ("optimizer.learning_rate=fast", "config.optimizer.learning_rate: got 'fast', takes a number"),
    ("optimizer.learning_rate=-1", "config.optimizer.learning_rate: got -1.0, takes at least 0"),
    ("optimizer.b1=1", "config.optimizer.b1: got 1.0, takes 0 or more, and less than 1"),
    ("optimizer.learning_rate=1e400", "config.optimizer.learning_rate: got 1e400, takes a finite"),
    ("train.seed=4294967296", "config.train.seed: got 4294967296, takes 0 to 4294967295"),
    ("depth.num_recursions=0", "config.model.depth.num_recursions: got 0, takes 1 to 10000"),
    ("eval.prompts=\udcff", "config.eval.prompts: got '\\udcff', takes text in UTF-8"),
    ("log.tensorboard=maybe", "config.log.tensorboard: got 'maybe', takes true or false"),
    ("schedule.kind=linear", "config.schedule.kind", "'constant' or 'cosine' or 'wsd'"),
    ("eval.prompts=['a','']", "config.eval.prompts: one is empty"),
    ("data.seed=-1", "config.data.seed: got -1, takes 0 to 4294967295"),
    ("data.text=", "config.data.path: no data; give folders as data.path, or text files"),
    ("data.weights=(1.0,2.0)", "config.data.weights: got 2 for 0 paths"),
    ("model.sharing=cicle", "config.model.sharing: got 'cicle'", "'cycle' or 'sequence'"),
    ("model.sharing=sequence", "config.model.depth: expert_choice", "depth.kind 'fixed'"),
    ("model.num_layers=5", "config.model.num_layers: 5 layers", "take num_layers 4 or 6"),
    ("model.num_layers=1", "config.model.num_layers: 1 layers", "take num_layers 2"),
    ("model.dtype=float16", "config.model.dtype: got 'float16'", "'float32' or 'bfloat16'"),
    ("block.kind=prenorm", "config.model.block.kind: no block 'prenorm'", "mean 'pre_norm'?"),
    ("block.kind=llama", "config.model.block.kind: 'llama' is now 'pre_norm' with mixer"),
    (
        "block.init.std=1",
        "config.block.init.std: may be model.block.mixer.init.std or model.block.feedforward.init",
    ),
    ("block.std=1", "config.block.std: may be model.block.mixer.init.std or model.block.feed"),
    ("block.mixer=gqa", "config.model.block.mixer.kind: no mixer 'gqa'", "grouped_query, momha"),
    ("depth.kind=acts", "config.model.depth.kind: no depth 'acts'", "did you mean 'act'?"),
    ("depth.kind=routing", "config.model.depth.kind: no depth 'routing'"),
    ("block.head_dim=7", "config.model.block.mixer.head_dim: got 7, takes an even number"),
    ("block.num_kv_heads=3", "config.model.block.mixer.num_heads: 2 query heads", "multiple of 3"),
    ("depth.capacity=(1.0,)", "config.model.depth.capacity: got 1 numbers for num_recursions 2"),
    ("depth.capacity=(0.5,1.0)", "config.model.depth.capacity: got (0.5, 1.0)", "never grow"),
    ("depth.capacity=(1.0,0.0)", "config.model.depth.capacity: got (1.0, 0.0)", "(0, 1]"),
    ("depth.capacity=0.5", "config.model.depth.capacity: got 0.5", "a list, each a number"),
    ("varies.norms=colour", "config.model.varies.norms: got 'colour'", "'recursion+block'"),
    ("varies.norm=one", "config.model.varies: no slot 'norm'; the slots are norms, attention"),
    ("mesh.data=0", "config.mesh.data: got 0, takes a number from 1, or -1"),
    ("mesh.rules.embed=tpu", "config.mesh.rules.embed: no mesh axis 'tpu'"),
    ("mesh.rules.mlp=expert", "config.mesh.rules.mlp: got ('expert',), and 'expert' splits"),
]


SENTENCE = r": (?:got |no such field|is |no (?=\w+ '))?|, takes |; |, and "


@pytest.mark.parametrize(
    ("typed", "parts"), [(t, p) for t, *p in WRONG], ids=[t for t, *_ in WRONG]
)
def test_a_wrong_value_is_refused_in_one_line_with_field_and_remedy(path, typed, parts):
    with pytest.raises(ConfigError) as refusal:
        load(path, typed)
    message = str(refusal.value)
    assert refusal.value.exit_code == 2 and "\n" not in message
    # The field, what it got and the remedy, in whatever sentence.
    for piece in (piece for part in parts for piece in re.split(SENTENCE, part)):
        assert piece in message, message


FILES = {
    "a file that is not there": (None, "no file tiny.py; there is albert, "),
    "no get_config": ("x = 1\n", "get_config"),
    "a dict": ("def get_config():\n    return {}\n", "get_config gave dict, not ConfigDict"),
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
    with pytest.raises(ConfigError) as refusal:
        load(str(tmp_path / "tiny.py"))
    assert part in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mor:tinny", "no preset 'tinny'; did you mean 'tiny'? There is demo, tiny"),
        ("mr:tiny", "did you mean 'mor'?"),
        ("mor", "name a preset: mor:PRESET; there is demo, tiny, 135m"),
        ("~no_such_user/x.py", "home directory"),
        ("x" * 5000 + ".py", "too long"),
        ("base:tiny", "no file base.py; there is albert"),
        ("", "there is albert, "),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_there(name, part):
    with pytest.raises(ConfigError) as refusal:
        load(name)
    assert part in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "tiny.py"
    write_config(path, values(FOLDER))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(str(path)).train.num_steps == 6


def test_a_trained_run_keeps_the_kind_of_its_depth():
    run = load("mor:tiny")
    assert config.override(run, {"depth.alpha": "0.3"}).model.depth.alpha == 0.3
    for field in ("depth.kind", "model.depth.kind", "depth", "train.num_steps", "block.mlp_dim"):
        with pytest.raises(ConfigError, match="a trained model is used as it is"):
            config.override(run, {field: "fixed"})


def test_activations_are_split_over_all_devices_or_refused():
    with pytest.raises(ConfigError, match=r"config.mesh.rules.batch: got \('data',\), takes"):
        config.load("mor:tiny", {"mesh.rules.batch": "('data',)", "mesh.rules.embed": "('fsdp',)"})


def test_data_that_is_typed_replaces_all_of_the_files(tmp_path):
    of = lambda **typed: config.load("mor:tiny", {f"data.{k}": v for k, v in typed.items()}).data
    preset, mine = of(), str(tmp_path / "mine.txt")
    assert preset.text and preset.validation_text
    assert (of(text=mine).text, of(text=mine).validation_text) == ((mine,), ())
    assert of(text=mine, validation_text=mine).validation_text == (mine,)
    assert (of(path=mine).path, of(path=mine).text, of(path=mine).validation_text) == (
        (mine,),
        (),
        (),
    )
    assert of(validation_text=mine).text == preset.text
    assert of(text=mine).tokenizer == preset.tokenizer
    with pytest.raises(ConfigError, match=r"config\.data\.text: is not read beside data\.path"):
        of(path=mine, text=mine)
