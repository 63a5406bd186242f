"""Settings of Hugging Face models as ours: the `config.json` of a family.

Llama (Touvron et al. 2023, arXiv 2302.13971), which SmolLM2 is; Qwen2 (Yang et al. 2024, arXiv
2407.10671) with biases of queries, keys and values; Qwen3 (Yang et al. 2025, arXiv 2505.09388) with
norms of query and key heads; Gemma 2 (Gemma Team 2024, arXiv 2408.00118); Ouro (Zhu et al. 2025,
arXiv 2510.25741). Options that change what is computed and are not read here are refused.
"""

import math
from collections.abc import Mapping
from typing import Any

from recursia import kv
from recursia.architecture import Model
from recursia.blocks.pre_norm import PreNorm
from recursia.blocks.sandwich_norm import SandwichNorm
from recursia.convert.formats import FAMILIES
from recursia.depth.exit_gate import ExitGate
from recursia.depth.fixed import Fixed
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.feedforward.geglu import GEGLU
from recursia.feedforward.swiglu import SwiGLU
from recursia.layers.stretch import Stretch
from recursia.mixers.grouped_query import GroupedQuery
from recursia.ranges import MOST_LAYERS

Settings = Mapping[str, Any]
_SANDWICH = ("gemma2", "ouro")
# Options of which one value is read.
_READ = {"mlp_bias": False, "pretraining_tp": 1, "use_bidirectional_attention": False}
_ACTIVATIONS = {"silu": SwiGLU, "swish": SwiGLU, "gelu_pytorch_tanh": GEGLU}
# What transformers takes where a file does not say.
_DEFAULTS: dict[str, Settings] = {
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
    "gemma2": {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
}


def model_of(theirs: Settings) -> tuple[str, Model]:
    """Returns the family that a `config.json` is of, and our configuration of its model.

    Raises:
      ConfigError: for an unknown architecture, an option that is not read or one that is missing.
    """
    family = theirs.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(
            f"config.json: model_type {family!r} is no architecture that is read; there is "
            f"{', '.join(FAMILIES)}"
        )
    for option, value in _READ.items():
        if (got := theirs.get(option) or value) != value:
            raise ConfigError(f"config.json: {option} {got!r} is not read; {value!r} is")
    try:
        return family, _model({**_DEFAULTS.get(family, {}), **theirs}, family)
    except ConfigError:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConfigError(f"config.json: {error}") from None


def _model(theirs: Settings, family: str) -> Model:
    layers, width = _number(theirs, "num_hidden_layers"), _number(theirs, "hidden_size")
    mixer, has_gate = _mixer(theirs, family, width), family == "ouro"
    recursions = int(theirs.get("total_ut_steps") or 4) if has_gate else 1
    if (steps := layers * recursions) > MOST_LAYERS:  # before a table has an entry for each
        raise ConfigError(f"config.json: has {steps} layers, takes at most {MOST_LAYERS}")
    embed = Table(
        is_tied=bool(theirs.get("tie_word_embeddings")),
        scale=math.sqrt(width) if family == "gemma2" else 1.0,
        logit_cap=float(theirs.get("final_logit_softcapping") or 0.0),
    )
    arrangement = SandwichNorm if family in _SANDWICH else PreNorm
    block = arrangement(
        embed_dim=width,
        mixer=mixer,
        feedforward=_feedforward(theirs),
        norm_eps=float(theirs.get("rms_norm_eps", 1e-6)),
    )
    threshold = float(theirs.get("early_exit_threshold") or 1.0)
    return Model(
        num_layers=layers * recursions,
        block=block,
        depth=ExitGate(recursions, exit_threshold=threshold) if has_gate else Fixed(1),
        sharing="cycle" if has_gate else "none",
        loop_norm="each" if has_gate else "none",
        kv=kv.Plan(window=_windows(theirs, family, layers, recursions)),
        embed=embed,
        vocab_size=_number(theirs, "vocab_size"),
    )


def _number(theirs: Settings, name: str) -> int:
    value = theirs.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json: {name} is {value!r}, takes a number from 1")
    return value


def _mixer(theirs: Settings, family: str, width: int) -> GroupedQuery:
    heads = _number(theirs, "num_attention_heads")
    biased = family == "qwen2" or bool(theirs.get("attention_bias"))
    scale = theirs.get("query_pre_attn_scalar") if family == "gemma2" else None
    base, stretch = _rotary(theirs, family)
    return GroupedQuery(
        num_heads=heads,
        num_kv_heads=int(theirs.get("num_key_value_heads") or heads),
        head_dim=int(theirs.get("head_dim") or width // heads),
        rope_base=base,
        rope_stretch=stretch,
        has_bias=biased,
        has_value_bias=biased,
        has_out_bias=family != "qwen2",
        head_norm_eps=float(theirs.get("rms_norm_eps", 1e-6)) if family == "qwen3" else None,
        score_scale=None if scale is None else float(scale) ** -0.5,
        score_cap=float(theirs.get("attn_logit_softcapping") or 0.0),
    )


def _feedforward(theirs: Settings) -> SwiGLU:
    name = theirs.get("hidden_activation") or theirs.get("hidden_act") or "silu"
    if name not in _ACTIVATIONS:
        raise ConfigError(f"config.json: hidden_act {name!r} is not read; {list(_ACTIVATIONS)} are")
    return _ACTIVATIONS[name](mlp_dim=_number(theirs, "intermediate_size"))


def _rotary(theirs: Settings, family: str) -> tuple[float, Stretch]:
    """Returns the base of the wavelengths and how they are stretched, in any version's words."""
    words: dict[str, Any] = dict(theirs.get("rope_scaling") or {})
    words |= theirs.get("rope_parameters") or {}
    default = 1_000_000.0 if family == "ouro" else 10_000.0
    base = float(words.get("rope_theta") or theirs.get("rope_theta") or default)
    kind = words.get("rope_type", words.get("type")) or "default"
    if (part := float(words.get("partial_rotary_factor") or 1.0)) != 1.0:
        raise ConfigError(f"config.json: partial_rotary_factor {part} is not read; 1 is")
    try:
        if kind == "default":
            return base, Stretch()
        if kind == "linear":
            return base, Stretch(factor=float(words["factor"]))
        if kind == "llama3":
            low, high = float(words["low_freq_factor"]), float(words["high_freq_factor"])
            length = int(words["original_max_position_embeddings"])
            return base, Stretch(float(words["factor"]), length, low, high)
    except KeyError as missing:
        raise ConfigError(f"config.json: rope_type {kind!r} has no {missing}") from None
    raise ConfigError(
        f"config.json: rope_type {kind!r} is not read; 'default', 'linear' and 'llama3' are"
    )


def _windows(theirs: Settings, family: str, layers: int, recursions: int) -> Any:
    """Returns the table of windows: of each layer, the same in every recursion; 0 without any."""
    window = int(theirs.get("sliding_window") or 0)
    has_switch = family in ("qwen2", "qwen3", "ouro")
    if not window or family == "llama" or (has_switch and not theirs.get("use_sliding_window")):
        return 0
    kinds: list[str] | None = theirs.get("layer_types")
    if kinds is None and family == "gemma2":
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    elif kinds is None:
        first = int(theirs.get("max_window_layers", 28))
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if len(kinds) != layers:
        raise ConfigError(f"config.json: {len(kinds)} layer_types for {layers} num_hidden_layers")
    row = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return (row,) * recursions if any(row) else 0
