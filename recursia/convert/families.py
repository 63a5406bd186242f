"""Our settings as those of Hugging Face models: the `config.json` of a family.

What a family has no words for is found by reading the settings back, and refused.
"""

from typing import Any

from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.convert.huggingface import model_of
from recursia.errors import ConfigError
from recursia.feedforward.geglu import GEGLU
from recursia.feedforward.swiglu import SwiGLU
from recursia.layers.stretch import Stretch
from recursia.mixers.grouped_query import GroupedQuery

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "ouro": "OuroForCausalLM",
}


def config_of(config: Model, family: str, length: int) -> dict[str, Any]:
    """Returns a family's `config.json` of our model.

    Args:
      config: with its size of vocabulary.
      family: one of `FAMILIES`.
      length: tokens of a document, `max_position_embeddings`.

    Raises:
      ConfigError: if the family has no such model, with what differs.
    """
    theirs = _written(config, family, length)
    read = model_of(theirs)[1]
    ours, back = comparable(config), comparable(read)
    if other := [name for name in ours if ours[name] != back.get(name)]:
        at = other[0]
        more = f", and so {', '.join(other[1:4])}" if len(other) > 1 else ""
        raise ConfigError(
            f"--format={family}: has no model of {at} {ours[at]!r}; it would be {back.get(at)!r}"
            f"{more}; take --format=recursive"
        )
    return theirs


def _written(config: Model, family: str, length: int) -> dict[str, Any]:
    """Returns the settings that a family has words for; reading them back tells what is lost."""
    block, mixer = config.block, config.block.mixer
    if not isinstance(mixer, GroupedQuery) or not isinstance(block.feedforward, SwiGLU):
        kinds = type(mixer).__name__, type(block.feedforward).__name__
        raise ConfigError(
            f"--format={family}: blocks of {' and '.join(kinds)} have no such form; take a model "
            "of grouped_query and swiglu"
        )
    is_gelu = isinstance(block.feedforward, GEGLU)
    base = float(mixer.rope_base or 0.0)
    theirs: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": block.embed_dim,
        "intermediate_size": block.feedforward.mlp_dim,
        "num_hidden_layers": config.schedule.num_blocks,
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "head_dim": mixer.head_dim,
        "hidden_act": "gelu_pytorch_tanh" if is_gelu else "silu",
        "max_position_embeddings": length,
        "rms_norm_eps": block.norm_eps,
        "rope_theta": base,
        "rope_parameters": {"rope_theta": base, **_stretched(mixer.rope_stretch)},
        "tie_word_embeddings": config.embed.is_tied,
        "attention_bias": mixer.has_bias and family != "qwen2",
        "torch_dtype": "float32",
        "use_cache": True,
    }
    if mixer.rope_stretch != Stretch():
        theirs["rope_scaling"] = _stretched(mixer.rope_stretch)
    return theirs | _of_family(config, family, mixer, is_gelu)


def _of_family(config: Model, family: str, mixer: GroupedQuery, is_gelu: bool) -> dict[str, Any]:
    windows = set(config.schedule.seen.tolist()) - {0}
    window = max(windows, default=0)
    row = config.schedule.seen[: config.schedule.num_blocks]
    kinds = ["sliding_attention" if seen else "full_attention" for seen in row]
    sliding: dict[str, Any] = {"layer_types": kinds, "sliding_window": window or None}
    match family:
        case "llama":
            return {"mlp_bias": False}
        case "qwen2" | "qwen3":
            return {**sliding, "use_sliding_window": bool(window), "max_window_layers": 0}
        case "gemma2":
            scale = mixer.score_scale or mixer.head_dim**-0.5
            return {
                **sliding,
                "sliding_window": window or 4096,
                "hidden_activation": "gelu_pytorch_tanh" if is_gelu else "silu",
                "query_pre_attn_scalar": round(scale**-2),
                "attn_logit_softcapping": mixer.score_cap or None,
                "final_logit_softcapping": config.embed.logit_cap or None,
            }
    return {
        **sliding,
        "use_sliding_window": bool(window),
        "total_ut_steps": config.schedule.num_recursions,
        "early_exit_threshold": getattr(config.depth, "exit_threshold", 1.0),
    }


def _stretched(stretch: Stretch) -> dict[str, Any]:
    if stretch == Stretch():
        return {"rope_type": "default"}
    if not stretch.original_length:
        return {"rope_type": "linear", "factor": stretch.factor}
    return {
        "rope_type": "llama3",
        "factor": stretch.factor,
        "low_freq_factor": stretch.low,
        "high_freq_factor": stretch.high,
        "original_max_position_embeddings": stretch.original_length,
    }


def comparable(config: Model) -> dict[str, Any]:
    """Returns what decides a model's logits, by dotted name: all but how it starts and trains."""
    mixer, embed, plan = config.block.mixer, config.embed, config.schedule
    found: dict[str, Any] = {"block": type(config.block).__name__}
    for name, part in (("block", config.block), ("mixer", mixer), ("", config.block.feedforward)):
        found |= _fields(part, name or "feedforward")
    found |= _fields(embed, "embed") | _fields(config.inject, "inject")
    if not getattr(mixer, "has_value_bias", False):
        found.pop("mixer.has_out_bias", None)
    scale = getattr(mixer, "score_scale", None)
    found["mixer.score_scale"] = scale or getattr(mixer, "head_dim", 1) ** -0.5
    steps = {slot: tuple(plan.entry(slot).tolist()) for slot in config.block.slots}
    return found | {
        "vocab_size": config.vocab_size,
        "depth": type(config.depth).__name__,
        "depth.num_recursions": plan.num_recursions,
        "depth.exit_threshold": getattr(config.depth, "exit_threshold", 1.0),
        "loop_norm": config.loop_norm,
        "factors": (
            config.parameterisation.branch(config.size),
            config.parameterisation.logits(config.size) * embed.logit_scale,
        ),
        "weights": type(config.weights).__name__,
        "parallel.num_copies": config.parallel.num_copies,
        "ends": tuple(config.ends.values()),
        "end_sizes": config.end_sizes,
        "end_feedforward": config.end_feedforward,
        "sharing": (plan.order, *sorted(steps.items())),
        "kv.kv_sharing": tuple(plan.owners.tolist()),
        "kv.passes": plan.passes,
        "kv.reads": plan.reads if plan.replays else "keys_values",
        "kv.window": tuple(plan.seen.tolist()),
    }


def _fields(part: Block | Any, name: str) -> dict[str, Any]:
    own = {field: value for field, value in vars(part).items() if not field.endswith("init_std")}
    for inner in ("mixer", "feedforward", "init"):
        own.pop(inner, None)
    return {name: type(part).__name__} | {f"{name}.{field}": value for field, value in own.items()}
