"""Matched models and controls cost what they are said to cost, when loaded from what is printed."""

import dataclasses
import json
import re

import pytest

from recursia import accounting, budget, config, kinds, matching
from tests.helpers.blocks import flat, published
from tests.helpers.refusals import assert_one_line
from tests.helpers.runs import rows, values, write_config, write_text

PAIRS = [
    ("mor:360m", "vanilla:360m"),
    ("vanilla:360m", "mor:360m"),
    ("recursive:360m", "vanilla:360m"),
    ("vanilla:360m", "recursive:360m"),
    ("mor:tiny", "vanilla:tiny"),
    ("vanilla:tiny", "mor:tiny"),
    ("vanilla:135m", "vanilla:1.7b"),
]
MATCHES = ("flops", "params", "cache")
EMBED, HEAD = "model.block.embed_dim", "model.block.mixer.head_dim"
KV_HEADS = "model.block.mixer.num_kv_heads"
FIELDS = {
    "flops": {"train.num_steps"},
    "params": {EMBED, HEAD, "model.block.feedforward.mlp_dim"},
    "cache": {"model.num_layers", KV_HEADS, HEAD},
}

# A block of other parts: its key and value heads are its query heads, its hidden width an expert's.
OTHER = published(
    "moeut",
    embed_dim=64,
    num_heads=4,
    head_dim=16,
    num_experts=2,
    top_k=2,
    expert_dim=96,
    num_attention_experts=2,
)


def with_other_block(run):
    return dataclasses.replace(run, model=dataclasses.replace(run.model, block=OTHER))


def load(name, **overrides):
    return config.load(name, {k.replace("__", "."): str(v) for k, v in overrides.items()})


def measured(run, match):
    """Returns what a match makes equal, from the accounts of the run's model alone."""
    vocab_size = run.model.vocab_size or 257
    model, train = run.model.sized(vocab_size), run.train
    if match == "params":
        return accounting.unique_parameters(model)
    if match == "cache":
        return accounting.cache_bytes_per_token(model, train.seq_len)
    sequences = train.num_steps * train.batch_size
    return sequences * accounting.training_flops(model, train.seq_len)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize(("first", "name"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_overrides_load_a_model_that_equals_the_reference(first, name, match):
    runs = {first: load(first), name: load(name)}
    made = matching.matched(runs, match)
    changes = matching.overrides(runs[name], made[name])
    assert set(changes) <= FIELDS[match]
    loaded = config.load(name, {field: str(value) for field, value in changes.items()})
    assert loaded == made[name]
    assert measured(loaded, match) == pytest.approx(measured(runs[first], match), rel=0.01)
    assert made[first] is runs[first]
    block = loaded.model.block.mixer
    assert block.head_dim % 2 == block.num_heads % block.num_kv_heads == 0


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("name", ["mor:tiny", "recursive:360m"])
def test_a_model_that_is_equal_already_stays_as_it_is(name, match):
    runs = {"a": load(name), "b": load(name)}
    assert matching.matched(runs, match) == runs
    assert matching.overrides(runs["a"], runs["b"]) == {}
    runs["b"] = load("vanilla:tiny")
    assert matching.matched(runs, "none") == runs


@pytest.mark.parametrize(
    ("first", "name"), [("vanilla:360m", "mor:360m"), ("mor:360m", "vanilla:360m")]
)
def test_widths_stay_in_proportion_and_round(first, name):
    runs = {first: load(first), name: load(name)}
    before, after = (
        flat(each[name].model.block) for each in (runs, matching.matched(runs, "params"))
    )
    scale = after.embed_dim / before.embed_dim
    assert abs(scale - 1) > 0.3 and after.embed_dim % 32 == 0
    assert after.head_dim / before.head_dim == pytest.approx(scale, rel=0.05)
    assert after.mlp_dim / before.mlp_dim == pytest.approx(scale, rel=0.1)
    assert after.num_heads == before.num_heads and after.mlp_dim % 16 == 0


# A cycle of 4 layers by so many recursions, 4 key and value heads of 16, keeps 2048 bytes a token;
# a plain stack of 2 such heads 256 for each of its layers.
CACHES = [
    (2, 8, {}),
    (2, 16, {"model.num_layers": 8}),
    (4, 4, {KV_HEADS: 2}),  # two layers do not divide
    (2, 3, {KV_HEADS: 2, HEAD: 12}),
]


def cycled(num_recursions):
    sizes = {"model__num_layers": 4, "model__block__num_kv_heads": 4}
    depth = {"model__sharing": "cycle", "model__depth__num_recursions": num_recursions}
    return load("recursive:tiny", **sizes, **depth)


@pytest.mark.parametrize(("num_recursions", "num_layers", "changes"), CACHES)
def test_cache_is_matched_by_whole_recursions_and_else_by_heads(
    num_recursions, num_layers, changes
):
    runs = {"a": load("vanilla:tiny", model__num_layers=num_layers), "b": cycled(num_recursions)}
    assert matching.overrides(runs["b"], matching.matched(runs, "cache")["b"]) == changes


@pytest.mark.parametrize("match", MATCHES)
def test_a_block_of_other_widths_is_matched_by_those_it_has(match):
    sizes = {"model__sharing": "cycle", "model__num_layers": 6}
    runs = {"a": load("vanilla:tiny"), "b": with_other_block(load("recursive:tiny", **sizes))}
    if match == "cache":
        runs["a"] = load("vanilla:tiny", model__num_layers=12, model__block__head_dim=18)
    made = matching.matched(runs, match)["b"]
    assert measured(made, match) == pytest.approx(measured(runs["a"], match), rel=0.01)
    changed = set(matching.overrides(runs["b"], made))
    widths = {EMBED, HEAD, "model.block.feedforward.expert_dim"}
    wanted = {"flops": {"train.num_steps"}, "params": widths, "cache": {HEAD}}
    assert changed == wanted[match]


def test_a_control_of_another_block_has_its_widths():
    run = with_other_block(load("recursive:tiny"))
    for name, control in matching.controls(run).items():
        block = control.model.block
        assert kinds.kind_of(block) == "pre_norm", name
        assert (block.mixer.num_heads, block.mixer.num_kv_heads) == (4, 4)
        match = "params" if name == "equal_params" else "flops"
        assert measured(control, match) == pytest.approx(measured(run, match), rel=0.01)


# What cannot be: one step of a large model against a small one, widths that are too coarse.
REFUSED = {
    "flops": (
        "vanilla:tiny",
        "mor:360m",
        r"1 % of 9\.\d+e\+11 wanted; nearest is 4\.\d+e\+15, by --config",
    ),
    "params": ("vanilla:tiny", "mor:360m", r"1 % of 4\d\d,\d{3} wanted; nearest is \d,\d{3},\d{3}"),
    "cache": ("vanilla:tiny", "mor:360m", "1 % of 2,048 wanted; nearest is 2,112, by --config"),
}


@pytest.mark.parametrize("match", REFUSED)
def test_what_cannot_be_equal_is_one_line_with_both_numbers(refused_command, match):
    first, name, part = REFUSED[match]
    typed = (f"--config={first}", f"--versus={name}", f"--match={match}")
    err = refused_command("budget", *typed, parts=[f"--match={match}: {name}: "])
    assert re.search(part, err), err


@pytest.mark.parametrize("match", MATCHES)
def test_what_is_printed_and_written_is_the_matched_model(
    command, refused_command, tmp_path, match
):
    typed = (
        "budget",
        "--config=mor:tiny",
        "--versus=vanilla:tiny,recursive:tiny",
        f"--match={match}",
    )
    out, err = command(*typed, "--json", f"--output={tmp_path / 'new'}")
    result, (table, _) = json.loads(out), command(*typed)
    assert err == "" and result["unique_parameters"]
    for name, row in result["versus"].items():
        loaded = config.load(name, {field: str(v) for field, v in row["overrides"].items()})
        assert config.load(row["path"], {}) == loaded
        (plain,) = budget.compare({name: loaded}, "none")
        assert row.items() >= plain.items()
        assert abs(row["matched_error"]) <= 0.01
        line = next(line for line in table.splitlines() if line.startswith(f"--config={name}"))
        assert line.split()[1:] == [f"--config.{f}={v}" for f, v in row["overrides"].items()]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "recursive_tiny.py",
        "vanilla_tiny.py",
    ]
    refused_command(*typed, f"--output={tmp_path / 'new'}", parts=["vanilla_tiny.py: "])


CONTROLLED = {
    "mor:tiny": (),
    "recursive:tiny": ("--config.train.seq_len=64",),
    "mor:360m": ("--config.model.kv.kv_sharing=first_recursion",),
}


@pytest.mark.parametrize("name", CONTROLLED)
def test_controls_are_unshared_and_equal_what_they_are_named_for(command, tmp_path, name):
    typed = [f"--config={name}", *CONTROLLED[name], f"--controls={tmp_path}"]
    out, err = command("budget", *typed, "--json")
    assert all("making controls" in line for line in err.splitlines())  # if it takes seconds
    result = json.loads(out)
    assert result["versus"] == {}
    run = config.load(name, dict(f.removeprefix("--config.").split("=") for f in CONTROLLED[name]))
    made = {control: config.load(row["path"], {}) for control, row in result["controls"].items()}
    assert made == matching.controls(run)
    assert list(made) == ["equal_params", "equal_flops", "equal_training", "equal_both"]
    for control in made.values():
        assert control.model.sharing == "none"
        assert control.model.depth.num_recursions == 1
        same = dataclasses.replace(control, model=run.model, train=run.train)
        assert same == run and control.train.seq_len == run.train.seq_len
    small, large, longer, copies = made.values()
    assert small.train == large.train == run.train and longer.model == small.model
    near = lambda value: pytest.approx(value, rel=0.01)
    assert measured(small, "params") == near(measured(run, "params"))
    assert measured(large, "flops") == near(measured(run, "flops"))
    assert measured(longer, "flops") == near(measured(run, "flops"))
    assert measured(small, "flops") < 0.8 * measured(run, "flops")
    assert measured(large, "params") > 1.3 * measured(run, "params")
    assert longer.train.num_steps > 1.25 * run.train.num_steps
    assert measured(copies, "params") == near(measured(run, "params"))
    assert measured(copies, "flops") == near(measured(run, "flops"))
    assert copies.model.num_layers == small.model.num_layers


def test_controls_of_a_plain_stack_are_itself():
    run = load("vanilla:tiny")
    assert set(map(repr, matching.controls(run).values())) == {repr(run)}


def test_controls_of_a_full_depth_loop_are_its_weights_once_and_its_walk_unshared():
    run = load("recursive:360m")
    small, large, longer, copies = matching.controls(run).values()
    assert small.model.block == large.model.block == run.model.block
    assert small.model.num_layers == 1 + 10 + 1 and large.model.num_layers == 1 + 3 * 10 + 1
    assert longer.train.num_steps > 2 * run.train.num_steps
    assert copies.model.parallel.num_copies == 3  # 3 x 12 layers for 32
    assert 0.8 < copies.train.num_steps / run.train.num_steps < 1


def test_copies_are_as_many_as_recursions_where_all_blocks_recur():
    run = load("recursive:360m", model__sharing="cycle", model__num_layers=30)
    copies = matching.controls(run)["equal_both"]
    assert (copies.model.num_layers, copies.model.parallel.num_copies) == (10, 3)
    assert copies.train.num_steps == pytest.approx(run.train.num_steps, rel=0.02)


def test_controls_stand_by_themselves(command, refused_command, tmp_path):
    alone = ("budget", "--config=mor:tiny", f"--controls={tmp_path}")
    first, *_, last = command(*alone)[0].splitlines()
    assert len(first) <= 100 and "equal_both.py  training flops" in last
    for wrong in ("--versus=vanilla:tiny", "--match=flops"):
        refused_command(*alone, wrong, parts=["--controls", "--versus", "--match"])
    typed = ("budget", "--config=mor:tiny")
    refused_command(*typed, f"--output={tmp_path}", parts=["give --versus=B,C"])
    (tmp_path / "file").write_text("")
    _, err = command(*typed, f"--controls={tmp_path / 'file' / 'x'}", code=2)
    assert_one_line(err, "cannot be written")


@pytest.mark.slow
def test_a_written_control_trains(command, tmp_path):
    write_text(tmp_path)
    base = values(tmp_path, "fixed", train={"num_steps": 300})
    name = write_config(tmp_path / "tiny.py", base)
    command("budget", f"--config={name}", f"--controls={tmp_path / 'controls'}")
    control = f"--config={tmp_path / 'controls' / 'equal_params.py'}"
    command("train", control, f"--workdir={tmp_path / 'run'}", "--config.train.num_steps=2")
    assert any(row["step"] == 2 for row in rows(tmp_path / "run"))
