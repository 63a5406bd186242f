"""What recursion buys, read off compiled training steps: shared weights travel once."""

import functools
from collections import Counter

import jax
import pytest

from recursia import config, sharding, topology
from recursia.preflight import collectives, hlo
from recursia.sharing.stack import Stack
from recursia.train.step import Trainer
from tests.helpers import exhaustive

VOCAB, BLOCKS = 258, 4  # no other weight is as large as one of four blocks
EIGHT = (exhaustive("cpu"), "v5e:2x4")


@functools.cache
def compiled(name, recursions, machine="cpu", **changed):
    """Returns the trainer and the compiled step of a preset with so many recursions."""
    layers = recursions * BLOCKS + 2 * (name in ("mor:tiny", "recursive:tiny"))
    changed = {
        "model.num_layers": layers,
        "depth.num_recursions": recursions,
        "model.vocab_size": VOCAB,
        "train.batch_size": 16,
        "train.seq_len": 32,
        "mesh.data": 1,
        "mesh.fsdp": 8,
        **changed,
    }
    if name == "mor:tiny":
        changed["depth.capacity"] = tuple([1.0] + [0.5] * (recursions - 1))
    run = config.load(name, {field: str(value) for field, value in changed.items()})
    devices = jax.devices() if machine == "cpu" else topology.devices(machine)
    made = Trainer(run, run.model.sized(VOCAB), sharding.make_mesh(run.mesh, devices))
    return made, made.lower().compile()


def moved(program):
    """Returns how often a step executes each collective: by kind, bytes and devices."""
    found = collectives.collectives(hlo.parse(program.as_text()))
    assert all(each.is_certain for each in found)
    count = Counter()
    for each in found:
        count[each.kind, each.bytes, each.group_size] += each.executions
    return count


def gathers(program):
    return Counter({key: n for key, n in moved(program).items() if key[0] == "all-gather"})


def weights(made, section):
    """Returns the bytes of each weight of a section that fsdp splits, whole, as it travels."""
    specs = made.specs[section]
    width = {"float32": 4, "bfloat16": 2}[made.model.dtype]
    leaves = [spec for spec in jax.tree.leaves(specs) if "embed" in spec.axes]
    return Counter(width * functools.reduce(int.__mul__, spec.shape) for spec in leaves)


def test_a_shared_weight_is_gathered_once_and_its_gradient_scattered_once_a_step():
    made, program = compiled("recursive:tiny", 4)
    found = moved(program)
    core = weights(made, "core")
    assert sum(core.values()) >= 7
    for size, count in core.items():
        assert found["all-gather", size, 8] == count
        assert found["reduce-scatter", size, 8] == count


@pytest.mark.slow
@pytest.mark.parametrize("machine", EIGHT)
def test_what_moves_does_not_grow_with_recursions(machine):
    two, eight = (compiled("recursive:tiny", r, machine)[1] for r in (2, 8))
    assert moved(two) == moved(eight)


@pytest.mark.slow
def test_an_unshared_stack_is_gathered_block_by_block():
    """The control: the same count of a model that shares nothing grows with its depth."""
    four, eight = (compiled("vanilla:tiny", 1, **{"model.num_layers": n})[1] for n in (4, 8))
    total = lambda program: sum(key[1] * n for key, n in gathers(program).items())
    table = 4 * VOCAB * 64
    assert total(eight) - table == pytest.approx(2 * (total(four) - table), rel=0.01)


@pytest.mark.slow
def test_routing_moves_nothing_but_its_routers_and_numbers():
    plain, routed = (moved(compiled(name, 3)[1]) for name in ("recursive:tiny", "mor:tiny"))
    made, _ = compiled("mor:tiny", 3)
    router = 4 * functools.reduce(int.__mul__, made.specs["depth"]["router"]["out"].shape)
    # Metrics and losses are summed: a few numbers of each recursion, in one or few all-reduces.
    reduced = lambda found: sum(key[1] * n for key, n in found.items() if key[0] == "all-reduce")
    assert reduced(routed) - reduced(plain) < 4 * 32 * 3
    rest = lambda found: Counter({k: n for k, n in found.items() if k[0] != "all-reduce"})
    more = {("all-gather", router, 8): 1, ("reduce-scatter", router, 8): 1}
    assert rest(routed) - rest(plain) == more
    assert not rest(plain) - rest(routed)


@pytest.mark.slow
def test_what_is_kept_does_not_grow_with_recursions():
    sizes = set()
    for recursions in (2, 8):
        _, program = compiled("recursive:tiny", recursions, "v5e:2x4")
        sizes.add(program.memory_analysis().argument_size_in_bytes)
    assert len(sizes) == 1


@pytest.mark.slow
def test_a_step_s_program_does_not_grow_with_recursions():
    program = lambda recursions: compiled("recursive:tiny", recursions, "v5e:2x4")[1].as_text()
    lines = {r: len(program(r).splitlines()) for r in (2, 8)}
    assert abs(lines[2] - lines[8]) <= 0.02 * lines[2]


# Activations, not logits or weights, are what these steps need memory for.
WIDE = {
    "model.dtype": "bfloat16",
    "train.remat": "block",
    "model.block.embed_dim": 256,
    "train.seq_len": 1024,
    "train.batch_size": 64,
}


def temporaries(name, recursions, **changed):
    program = compiled.__wrapped__(name, recursions, "v5e:2x4", **WIDE, **changed)[1]
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.exhaustive
def test_sharing_keeps_no_more_for_the_backward_pass_than_a_stack_of_its_depth():
    """Nor do the unshared ends: a scan of one block computes it again as a longer one does."""
    unshared = temporaries("vanilla:tiny", 1, **{"model.num_layers": 8 * BLOCKS + 2})
    assert temporaries("recursive:tiny", 8) <= unshared


@pytest.mark.exhaustive
def test_one_scan_over_all_steps_keeps_less_than_one_within_another(monkeypatch):
    one = temporaries("recursive:tiny", 2)
    monkeypatch.setattr(Stack, "can_walk", False)
    assert one < 0.9 * temporaries("recursive:tiny", 2)


@pytest.mark.slow
def test_the_count_would_see_a_gather_in_a_loop():
    """The same step with its core gathered where it is used: once in every recursion and pass."""
    made, program = compiled("recursive:tiny", 4, **{"model.varies.mlp": "recursion+block"})
    shared, _ = compiled("recursive:tiny", 4)
    assert sum(gathers(program).values()) > sum(gathers(compiled("recursive:tiny", 4)[1]).values())
    assert made.specs["core"]["mlp"]["up"].shape[0] == 4 * BLOCKS
    assert shared.specs["core"]["mlp"]["up"].shape[0] == BLOCKS
