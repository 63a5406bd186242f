"""What is written for PyTorch computes what the model computes."""

import dataclasses
import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from recursia import kv
from recursia.convert import export
from recursia.depth.exit_gate import ExitGate
from recursia.depth.expert_choice import ExpertChoice
from recursia.depth.token_choice import TokenChoice
from recursia.embeddings.table import Table
from recursia.feedforward.gelu import GELU
from recursia.layers.stretch import Stretch
from recursia.sharing.lora import Lora
from tests.helpers import blocks
from tests.helpers.checkpoints import words
from tests.helpers.tiny import BLOCK, VOCAB, draw, forward, text, tiny

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RELAXED = {"weights": Lora(3), "varies": (("norms", "recursion+block"),)}
ODD = blocks.altered(
    BLOCK,
    rope_layout="interleaved",
    rope_fraction=0.5,
    has_bias=True,
    has_value_bias=True,
    is_gated=True,
    head_norm_eps=1e-5,
    score_cap=1.5,
    score_scale=0.4,
    rope_stretch=Stretch(4.0, 8),
)
DENSE = {
    "cycle": tiny(),
    "sequence": tiny(sharing_="sequence"),
    "middle cycle": tiny(sharing_="middle_cycle", is_tied=False),
    "middle sequence": tiny(sharing_="middle_sequence"),
    "relaxed": dataclasses.replace(tiny(), **RELAXED),
    "windows": dataclasses.replace(tiny(recursions=2), kv=kv.Plan(window=((3, 0), (0, 2)))),
}
OWN = {
    **DENSE,
    "keys of the first recursion": tiny(kv="first_recursion"),
    "loop norm": dataclasses.replace(tiny(), loop_norm="each"),
    "loop norm at the end": dataclasses.replace(tiny(sharing_="middle_cycle"), loop_norm="last"),
    "sandwich, gate": dataclasses.replace(
        tiny(),
        block=blocks.arranged(BLOCK, "sandwich_norm"),
        depth=ExitGate(3, exit_threshold=0.6),
        loop_norm="each",
    ),
    "odd": dataclasses.replace(
        tiny(), block=ODD, embed=Table(False, factor_dim=6, scale=3.0, logit_cap=2.0)
    ),
    "pre and post": dataclasses.replace(tiny(), block=blocks.arranged(BLOCK, "pre_post_norm")),
    "universal": dataclasses.replace(
        tiny(),
        block=blocks.published(
            "universal", embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24
        ),
    ),
    "parallel, without biases": dataclasses.replace(
        tiny(),
        block=dataclasses.replace(
            blocks.arranged(BLOCK, "parallel_norm"),
            feedforward=GELU(24, has_bias=False),
            norm="unbiased_layer",
        ),
    ),
    "expert choice": tiny("expert_choice", "middle_cycle", alpha=0.7),
    "expert choice, keys of the first": tiny("expert_choice", kv="first_recursion", alpha=1.0),
    "expert choice, mlp": tiny("expert_choice", router="mlp", gating="delta", temperature=0.5),
    "auxiliary router": tiny("expert_choice", sampling="aux_router", score="tanh", alpha=1.0),
    "token choice": dataclasses.replace(
        tiny(), depth=TokenChoice(3, balancing="loss_free"), vocab_size=VOCAB
    ),
    "token choice, keys of the first": dataclasses.replace(
        tiny(kv="first_recursion"), depth=TokenChoice(3, score="sigmoid", gating="replace")
    ),
}


def written(folder, config, params, form):
    export.export(config, params, words(), form, 64, folder)
    return folder


def code(folder):
    """Returns the modelling file of a folder as a module."""
    spec = importlib.util.spec_from_file_location("modeling_recursia", folder / export.CODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(config, params, tokens, mode="eval", lengths=None):
    lengths = jnp.array(lengths or [tokens.shape[1]] * len(tokens))
    segments = (jnp.arange(tokens.shape[1])[None] < lengths[:, None]).astype(int)
    return np.asarray(forward(params, tokens, config, mode, segment_ids=segments)[0])


def theirs(network, tokens, **more):
    with torch.no_grad():
        return network(torch.tensor(np.asarray(tokens)), **more).logits.numpy()


@pytest.mark.parametrize("name", OWN)
def test_the_modelling_file_gives_the_same_logits(name, tmp_path):
    config = OWN[name]
    params, tokens = draw(config), text(length=16)
    network = code(written(tmp_path, config, params, "recursive")).RecursiaForCausalLM
    network = network.from_pretrained(tmp_path).eval()
    for mode in config.modes:
        network.config.mode = mode
        expected = ours(config, params, tokens, mode)
        np.testing.assert_allclose(theirs(network, tokens), expected, rtol=0, atol=2e-4)
    mask = torch.arange(16)[None] < torch.tensor([16, 9])[:, None]
    for mode in config.modes:
        network.config.mode = mode
        got = theirs(network, tokens, attention_mask=mask.long())
        expected = ours(config, params, tokens, mode, lengths=[16, 9])
        seen = mask.numpy()
        np.testing.assert_allclose(got[seen], expected[seen], rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", [name for name in DENSE if name != "windows"])
def test_stock_llama_gives_the_same_logits_unrolled(name, tmp_path):
    config = DENSE[name]
    params, tokens = draw(config), text(length=16)
    written(tmp_path, config, params, "llama")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(network).__name__ == "LlamaForCausalLM" and not list(tmp_path.glob("*.py"))
    expected = ours(config, params, tokens)
    np.testing.assert_allclose(theirs(network, tokens), expected, rtol=0, atol=2e-4)


def test_a_folder_loads_by_its_own_code_and_goes_on(tmp_path, monkeypatch):
    from transformers import dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    config = OWN["expert choice"]
    (tmp_path / "out").mkdir()
    written(tmp_path / "out", config, draw(config), "recursive")
    how = {"trust_remote_code": True}
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **how).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = tokenizer("abc", return_tensors="pt", add_special_tokens=False)
    assert asked["input_ids"].tolist() == [words().encode("abc")]
    drawn = network.generate(asked["input_ids"], max_new_tokens=5, do_sample=False, eos_token_id=-1)
    with torch.no_grad():
        for place in range(3, 8):
            assert network(drawn[:, :place]).logits[0, -1].argmax() == drawn[0, place]
        labelled = network(drawn, labels=drawn)
    nats = -labelled.logits.log_softmax(-1)[0, :-1].gather(-1, drawn[0, 1:, None]).mean()
    assert abs(labelled.loss - nats) < 1e-5


def test_a_choice_of_the_best_is_not_the_causal_one(tmp_path):
    config = dataclasses.replace(OWN["expert choice"], depth=ExpertChoice(3, alpha=0.7))
    params, tokens = draw(config), text(length=16)
    assert np.abs(ours(config, params, tokens) - ours(config, params, tokens, "causal")).max() > 0.1
