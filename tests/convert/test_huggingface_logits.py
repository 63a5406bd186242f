"""Imported models give the logits that transformers gives, family by family."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import model
from recursia.convert import huggingface, loading, safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
    rope_theta=500.0,
)
SLIDING = dict(use_sliding_window=True, sliding_window=5, max_window_layers=2)
CASES = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", dict(tie_word_embeddings=True, head_dim=12)),
    "llama biased": ("Llama", dict(attention_bias=True, rms_norm_eps=1e-3)),
    "llama 3.1": ("Llama", dict(rope_parameters=LLAMA3)),
    "llama linear": (
        "Llama",
        dict(rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=1e4)),
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2 sliding": ("Qwen2", dict(tie_word_embeddings=True, **SLIDING)),
    "qwen3": ("Qwen3", dict(head_dim=8)),
    "qwen3 sliding": ("Qwen3", dict(head_dim=16, attention_bias=True, **SLIDING)),
    "gemma2": ("Gemma2", dict(head_dim=12, sliding_window=5, query_pre_attn_scalar=20)),
    "gemma2 caps": (
        "Gemma2",
        dict(
            head_dim=8,
            sliding_window=4,
            query_pre_attn_scalar=9,
            attn_logit_softcapping=1.5,
            final_logit_softcapping=2.0,
        ),
    ),
}


def saved(folder, name, shard=None):
    """Writes a random model of a case as transformers does, every parameter far from its start."""
    kind, options = CASES[name]
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **options})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for array in theirs.parameters():
            array += 0.2 * torch.randn_like(array)
    theirs.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return theirs


def loaded(folder):
    settings = json.loads((folder / "config.json").read_text())
    family, config = huggingface.model_of(settings)
    where = jax.tree.map(
        lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), model.specs(config)
    )
    return config, loading.load(config, family, safetensors.read(folder), where)


def ours(config, params, tokens):
    out = model.apply(params, jnp.asarray(tokens), config, mode="eval")
    return np.asarray(model.logits(params, out.hidden, config))


def compare(config, params, theirs):
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 24))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(ours(config, params, tokens), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", CASES)
def test_logits_equal(name, tmp_path):
    theirs = saved(tmp_path, name)
    compare(*loaded(tmp_path), theirs)


def test_several_files_are_one_checkpoint(tmp_path):
    theirs = saved(tmp_path, "qwen3", shard="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    compare(*loaded(tmp_path), theirs)
