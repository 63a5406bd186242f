"""What the authors' code computed on the same weights, and that a difference would be seen."""

import json
import pathlib

import numpy as np
import pytest

from recursia.errors import ConfigError, DataError
from recursia.evaluate import parity
from tests.helpers import slow
from tests.helpers.refusals import refused

FOLDER = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
ROUTED = FOLDER / "mor_expert.npz"


@pytest.fixture
def changed(tmp_path):
    """Returns a function that writes a file with one entry changed, and others replaced."""

    def write(name, change, path=ROUTED, **others):
        with np.load(path) as file:
            arrays = {**dict(file), **others}
        arrays[name] = change(arrays[name])
        np.savez(tmp_path / "changed.npz", **{k: v for k, v in arrays.items() if v is not None})
        return str(tmp_path / "changed.npz")

    return write


def bump(size):
    """Returns a change of the largest entry by a fraction of it."""

    def change(array):
        array = array.copy()
        array.flat[np.abs(array).argmax()] *= 1 + size
        return array

    return change


def first_to(value):
    """Returns a change of the first entry."""

    def change(array):
        array = array.copy()
        array[(0,) * array.ndim] = value
        return array

    return change


def test_all_files_are_here():
    assert len(NAMES) == 39


@pytest.mark.few(4)
@pytest.mark.parametrize("name", NAMES)
def test_the_authors_code_is_reproduced(name):
    result = parity.check(str(FOLDER / f"{name}.npz"))
    assert result.ok, result


CHANGES = {  # what is changed in a file, how, and the differences that say so
    "a parameter": (
        "param/model.layers.1.block.0.mlp.up_proj.weight",
        bump(0.05),
        {"logits_max_abs": parity.LOGITS, "gradient_max_rel": parity.GRADIENTS},
    ),
    "a gradient": (
        "grad/model.embed_tokens.weight",
        bump(1e-3),
        {"gradient_max_rel": parity.GRADIENTS},
    ),
    "the loss": ("cross_entropy", lambda x: x + 1e-3, {"loss_max_abs": parity.LOSSES}),
    "the router's loss": ("router_loss", lambda x: x + 1e-3, {"loss_max_abs": parity.LOSSES}),
}


@pytest.mark.parametrize(("name", "change", "seen"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen_where_it_is(changed, name, change, seen):
    result = parity.check(changed(name, change))
    assert not result.ok
    assert all(getattr(result, field) > limit for field, limit in seen.items())
    assert "logits_max_abs" in seen or result.logits_max_abs < parity.LOGITS


def test_a_changed_update_is_seen(changed):
    name = "param_after/torch_original_f32/wide"
    result = parity.check(changed(name, bump(1e-5), FOLDER / "muon.npz"))
    assert not result.ok and result.update_max_abs > parity.UPDATES


@pytest.mark.slow
def test_changed_weights_of_streams_are_seen(changed):
    result = parity.check(changed("stream_weights", bump(1e-3), FOLDER / "parscale_p3.npz"))
    assert not result.ok and result.logits_max_abs > parity.LOGITS


def test_a_changed_recipe_is_seen(changed):
    path, name = FOLDER / "completep_base.npz", "transformer.wpe.weight"
    with np.load(path) as file:
        others = {f"param_after/{name}": file[f"param_after/{name}"] + 2e-4}
        others["step_loss"] = file["step_loss"] + 1e-3
    result = parity.check(changed("recipe/eps", bump(1e-5), path, **others))
    assert result.recipe_max_rel > parity.RECIPES and result.trained_max_abs > parity.TRAINED
    assert result.loss_max_abs > parity.LOSSES and result.gradient_max_rel < parity.GRADIENTS
    for option in ({"mup_disable_hidden_lr_scaling": True}, {"mup_width_multiplier": 3.0}):
        change = lambda config, new=option: np.array(json.dumps(json.loads(str(config)) | new))
        with refused(ConfigError, *option):
            parity.check(changed("config", change, path))


def other_token(index):
    """Selects, in the first row, another last token."""
    index = index.copy()
    index[0, -1] = max(set(range(index.max() + 2)) - set(index[0]))
    return np.sort(index, axis=1)


@pytest.mark.parametrize(
    "change", [other_token, lambda index: index[:, :-1]], ids=["another token", "fewer tokens"]
)
def test_another_selection_is_seen(changed, change):
    result = parity.check(changed("selected/1", change))
    assert not result.ok and not result.is_routed_alike


@pytest.mark.parametrize("name", ["logits", slow("router_loss"), "grad/model.norm.weight"])
def test_what_is_not_a_number_is_not_equal(changed, name):
    assert not parity.check(changed(name, first_to(np.nan))).ok


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("logits", lambda _: None, DataError),
        ("param/model.norm.weight", lambda _: None, DataError),
        ("grad/model.norm.weight", lambda _: None, DataError),
        ("family", lambda _: np.array("gpt"), ConfigError),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(changed, name, change, error):
    with refused(error):
        parity.check(changed(name, change))


def configured(*options):
    """Returns a change of the configuration: (section, fields of it, or None to take it away)."""

    def change(config):
        theirs = json.loads(str(config))
        for section, fields in options:
            theirs[section] = None if fields is None else (theirs[section] or {}) | fields
        return np.array(json.dumps(theirs))

    return change


@pytest.mark.parametrize(
    ("section", "option"),
    [
        ("mor", {"type": "layer"}),
        ("mor", {"rand_router": True}),
        ("mor", {"router_type": "deep"}),
        ("mor", {"expert": {"cap_warmup_step": 3}}),
        ("mor", {"expert": {"sampling": "dice"}}),
        ("mor", {"type": "token", "token": {"balancing": "dice"}}),
        ("mor", {"type": "token", "token": {"bal_warmup_step": 3}}),
        ("mor", {"expert": {"router_func": "relu"}}),
        ("kv_sharing", {"update_cache": True}),
        ("kv_sharing", {"sharing": "cycle"}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
    ],
    ids=str,
)
def test_an_option_without_counterpart_is_refused_by_name(changed, section, option):
    *_, name = option
    with refused(ConfigError, name):
        parity.check(changed("config", configured((section, option))))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("lckv_cla", {"layer_types": "0_4_4_4_6_5"}),  # keys of a layer that there is not
        ("lckv_cla", {"layer_types": "0_0_1_3_3_5"}),  # of one that reads another's
        ("lckv_cla", {"layer_types": "0_0_2t_2_4_4"}),
        ("lckv_cla", {"layer_types": "0_0_2_2_4"}),
        ("lckv_cla", {"force_nodiag": True}),
        ("lckv_cla", {"mlp_bias": True}),
        ("mlkv", {"use_key_value_mlp": True}),
        ("mlkv", {"hidden_act": "gelu_new"}),
        ("mlkv", {"rotary_pct": 0.375}),  # 3 numbers of a head
    ],
    ids=str,
)
def test_an_option_of_shared_keys_without_counterpart_is_refused_by_name(changed, name, option):
    def change(config):
        return np.array(json.dumps(json.loads(str(config)) | option))

    with refused(ConfigError, *option):
        parity.check(changed("config", change, FOLDER / f"{name}.npz"))


@pytest.mark.slow
def test_keys_are_handed_on_rotated_though_the_released_code_does_not(changed):
    """Their other arrays, gradients included, are held with keys as released."""
    result = parity.check(changed("rotated_logits", bump(1e-3), FOLDER / "mlkv.npz"))
    assert result.logits_max_abs > parity.LOGITS and result.gradient_max_rel < parity.GRADIENTS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("recursive", {"sharing": "middle_sequence"}), "recursion"),  # their code routes nothing
        (("recursive", None), "num_layers|recursion|missing"),
        (("mor", {"capacity": "0.5,1.0,0.5"}), "capacity"),
        (("llama", {"hidden_size": 30}), "shape|head"),
        (("llama", {"vocab_size": 60}), "60"),
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_its_arrays_is_one_line(changed, change, reason):
    with pytest.raises((ConfigError, DataError), match=reason) as refusal:
        parity.check(changed("config", configured(change)))
    assert "\n" not in str(refusal.value) and "changed.npz" in str(refusal.value)


@pytest.mark.slow
def test_a_loss_that_their_router_is_trained_without_is_not_compared(changed):
    """Theirs is 0 then; gradients of the router are left out here, for the file has them."""
    cases = [
        ("mor_expert", "expert", {"sampling": None}, ("router_loss",)),
        ("mor_token", "token", {"balancing": None}, ("balancing_loss", "balancing_ratio")),
    ]
    for name, kind, option, names in cases:
        path = FOLDER / f"{name}.npz"
        with np.load(path) as file:
            own = json.loads(str(file["config"]))["mor"][kind] | option
            others = dict.fromkeys(names, np.float32(0)) | {"total_loss": file["cross_entropy"]}
        change = configured(("mor", {kind: own}))
        result = parity.check(changed("config", change, path, **others))
        assert result.loss_max_abs < parity.LOSSES
        assert result.logits_max_abs < parity.LOGITS


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("not arrays")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04" + bytes(40))
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("none.npz", "text.npz", "empty.npz", "broken.npz", "one.npy"):
        with pytest.raises(DataError, match=name):
            parity.check(str(tmp_path / name))
