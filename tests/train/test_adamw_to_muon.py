"""AdamW, then Muon: each phase is its rule's, what is handed over, and runs across the switch."""

import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recursia import cli, config, learning_rate, notes
from recursia.optimizers.adamw import AdamW
from recursia.optimizers.adamw_to_muon import AdamWToMuon, Handed
from recursia.optimizers.muon import Muon
from recursia.params import Spec, ones
from recursia.settings import Schedule
from tests.helpers import slow
from tests.helpers.refusals import refused
from tests.helpers.runs import STEPS, differences, saved, tiny_run, values, write_config
from tests.helpers.trainers import FOLDER

SPECS = {
    "bank": Spec((5, 3), ("embed", "mlp"), ones).stack((2,), (None,)),
    "norm": Spec((4,), ("embed",), ones, is_decayed=False),
}
GRADS = [
    {k: np.random.default_rng(i).normal(size=s.shape).astype(np.float32) for k, s in SPECS.items()}
    for i in range(6)
]
OPTIONS = {"learning_rate": 0.1, "weight_decay": 0.5, "clip_norm": 0.0}
SWITCH = 3


def taken(optimizer, grads=GRADS, start=None, decay_start=SWITCH, state=None):
    """Returns the parameters after each step, from ones, and the last state."""
    chain = optimizer.transform(SPECS, optax.constant_schedule(1.0), decay_start)
    params = start or {k: jnp.ones(s.shape) for k, s in SPECS.items()}
    state, found, update = state or chain.init(params), [], jax.jit(chain.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        found.append(params := optax.apply_updates(params, updates))
    assert start or update._cache_size() == 1  # one program for both phases
    return found, state


def held(state):
    (found,) = (x for x in jax.tree.leaves(state, is_leaf=is_handed) if is_handed(x))
    return found


def is_handed(x):
    return isinstance(x, Handed)


def is_near(one, other, size=1e-5):
    return all(np.allclose(one[k], other[k], atol=size) for k in SPECS)


def switching(**options):
    return AdamWToMuon(**OPTIONS, precision="float32", **options)


def test_the_first_phase_is_adamw_and_the_second_a_new_run_of_muon():
    found, _ = taken(switching())
    adamw, _ = taken(AdamW(**OPTIONS), GRADS[:SWITCH])
    assert all(is_near(a, b) for a, b in zip(found, adamw, strict=False))
    muon = Muon(**OPTIONS, precision="float32")
    after, _ = taken(muon, GRADS[SWITCH:], start=found[SWITCH - 1])
    assert all(is_near(a, b) for a, b in zip(found[SWITCH:], after, strict=True))


def test_a_mean_that_is_handed_over_is_a_momentum_of_its_weight():
    _, before = taken(switching(hand_over="adam_mean"), GRADS[:SWITCH])
    _, after = taken(switching(hand_over="adam_mean"), GRADS[: SWITCH + 1])
    before, after, grad = held(before), held(after), GRADS[SWITCH]
    want = 0.95 * before.adam.mu["bank"] / (1 - 0.95) + grad["bank"]
    assert np.allclose(after.adam.mu["bank"], want, rtol=1e-5)
    assert np.allclose(after.adam.mu["norm"], 0.9 * before.adam.mu["norm"] + 0.1 * grad["norm"])
    assert after.adam.count == SWITCH + 1
    assert np.array_equal(after.adam.nu["bank"], before.adam.nu["bank"])


def test_a_switch_whose_update_was_skipped_is_made_by_the_next():
    found, state = taken(switching(), GRADS[:SWITCH])
    is_count = lambda x: jnp.issubdtype(x.dtype, jnp.integer)
    skipped = jax.tree.map(lambda x: x + 1 if is_count(x) else x, state)
    (late,), _ = taken(switching(), GRADS[-1:], start=found[-1], state=skipped)
    (want,), _ = taken(switching(), GRADS[-1:], start=found[-1], state=state)
    assert all(np.array_equal(late[k], want[k]) for k in SPECS)


@pytest.mark.parametrize("hand_over", ["fresh", "adam_mean"])
def test_a_run_that_is_made_longer_in_its_decay_goes_back_to_adam(hand_over):
    optimizer = switching(hand_over=hand_over)
    found, state = taken(optimizer)
    (back,), after = taken(optimizer, GRADS[:1], start=found[-1], decay_start=99, state=state)
    old, new, grad = held(state).adam.mu["bank"], held(after).adam.mu["bank"], GRADS[0]["bank"]
    kept = 0.05 * old if hand_over == "adam_mean" else 0
    assert np.allclose(new, 0.9 * kept + 0.1 * grad, atol=1e-5)
    if hand_over == "fresh":
        (want,), _ = taken(AdamW(**OPTIONS), GRADS[:1], start=found[-1])
        assert is_near(back, want)


def test_its_state_is_as_large_as_adamws_and_accounted_for():
    _, state = taken(switching())
    arrays = jax.tree.leaves((held(state).adam.mu, held(state).adam.nu))
    size = sum(x.nbytes for x in arrays)
    assert size == switching().state_bytes(SPECS) == AdamW().state_bytes(SPECS)


@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_the_learning_rate_is_continuous_at_the_switch(shape):
    made = Schedule("wsd", warmup_steps=10, decay_fraction=0.4, final_fraction=0.1)
    made = config.build(Schedule, {**vars(made), "decay_shape": shape}, "config")
    start = made.decay_start(100)
    rates = np.array([learning_rate.factor(made, 100)(step) for step in range(103)])
    assert start == 60 and rates[start] == 1 and rates[start + 1] < 1
    assert np.abs(np.diff(rates[10:])).max() < 2 * math.log(2) * 0.9 / 40
    assert np.allclose(rates[100:], 0.1)


def test_other_schedules_are_refused():
    with refused(config.ConfigError, "optimizer.kind", "'cosine'", "take 'wsd'"):
        changed = {"optimizer.kind": "adamw_to_muon", "schedule.kind": "cosine"}
        config.load("vanilla:tiny", changed)


@pytest.mark.parametrize(
    ("fraction", "said"), [(0.25, "steps 1 to 225, Muon from there to 300"), (0, "in all steps")]
)
def test_a_dry_run_names_the_switch(fraction, said):
    changed = {"optimizer.kind": "adamw_to_muon", "schedule.decay_fraction": fraction}
    (line,) = notes.notes(config.load("vanilla:tiny", changed))
    assert line.startswith("optimizer: AdamW in ") and said in line


@pytest.mark.slow
@pytest.mark.parametrize("starts", [(SWITCH,), slow((SWITCH - 1, SWITCH + 1))], ids=["at", "near"])
def test_a_run_resumes_to_the_bit_across_the_switch(folder, tmp_path, starts):
    often = {"every_steps": 1, "keep": STEPS}
    fields = {"optimizer": {"kind": "adamw_to_muon"}, "schedule": {"decay_fraction": 0.5}}
    made = values(folder, "fixed", checkpoint=often, **fields)
    path = write_config(tmp_path / "tiny.py", made)
    run = lambda workdir: cli.main(["train", f"--config={path}", f"--workdir={workdir}"])
    whole = tmp_path / "whole"
    assert run(whole) == 0
    assert not notes.programs(tiny_run(FOLDER, "fixed", **fields))  # one serves all steps
    for start in starts:
        broken = tmp_path / f"from_{start}"
        shutil.copytree(whole, broken)
        for step in saved(broken)[start:]:
            shutil.rmtree(broken / "checkpoints" / str(step))
        assert run(broken) == 0
        assert not differences(broken, whole)


def test_a_sharded_bank_takes_the_same_steps():
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    split = {k: jax.device_put(jnp.ones(s.shape), place) for k, s in SPECS.items()}
    assert is_near(taken(switching(), start=split)[0][-1], taken(switching())[0][-1])
