"""Which array of a Hugging Face checkpoint is which part of our parameter tree.

A linear weight is `[out, in]` there and `[in ..., out ...]` here, so that its transpose in our
shape is ours; nothing else is moved, and what is read is a view. Some families keep a norm's weight
less one: subtracting one from what adding one gave is exact, and so a round trip is.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from recursia import model
from recursia.architecture import Model
from recursia.params import Spec

Path = str  # of a leaf of our tree, such as "core.attention.query"
_LAYER = {
    **{
        f"attention.{ours}{kind}": f"self_attn.{theirs}_proj.{name}"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
        for kind, name in (("", "weight"), ("_bias", "bias"))
    },
    "attention.query_norm": "self_attn.q_norm.weight",
    "attention.key_norm": "self_attn.k_norm.weight",
    **{f"mlp.{name}": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
}
_OUTER = {
    "embed.table": "model.embed_tokens.weight",
    "embed.head": "lm_head.weight",
    "final_norm": "model.norm.weight",
    "depth.gate.weight": "model.early_exit_gate.weight",
    "depth.gate.bias": "model.early_exit_gate.bias",
}
_TWO_NORMS = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}
_NORMS = {
    "llama": _TWO_NORMS,
    "qwen2": _TWO_NORMS,
    "qwen3": _TWO_NORMS,
    "gemma2": {
        "attention": "input_layernorm",
        "after_attention": "post_attention_layernorm",
        "mlp": "pre_feedforward_layernorm",
        "after_mlp": "post_feedforward_layernorm",
    },
    "ouro": {
        "attention": "input_layernorm",
        "after_attention": "input_layernorm_2",
        "mlp": "post_attention_layernorm",
        "after_mlp": "post_attention_layernorm_2",
    },
}
_LESS_ONE = ("gemma2",)  # families whose norms are kept so


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one of their arrays lies in our tree.

    Attributes:
      name: theirs.
      shape: theirs.
      path: of our leaf.
      entry: of the leaf's bank; None where it has none.
      ours: the shape of ours.
      is_less_one: whether theirs is ours less one.
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    entry: int | None
    ours: tuple[int, ...]
    is_less_one: bool

    def read(self, array: np.ndarray) -> np.ndarray:
        """Returns ours of theirs: a view, but for a norm less one."""
        found = (array.T if array.ndim > 1 and not self._is_table else array).reshape(self.ours)
        return found.astype(np.float32) + np.float32(1) if self.is_less_one else found

    def write(self, array: np.ndarray) -> np.ndarray:
        """Returns theirs of ours."""
        found = array - np.float32(1) if self.is_less_one else array
        if len(self.shape) < 2 or self._is_table:
            return found.reshape(self.shape)
        return found.reshape(self.shape[::-1]).T

    @property
    def _is_table(self) -> bool:
        return self.path.startswith("embed.")


def places(config: Model, family: str) -> list[Place]:
    """Returns every array of a family's checkpoint of a model, embedding first, layer by layer.

    Args:
      config: a model whose core has one bank entry a layer.
      family: one of `formats.FAMILIES`.
    """
    specs = dict(leaves(model.specs(config)))
    place = functools.partial(_place, is_less=family in _LESS_ONE)
    norms = {f"norms.{ours}": f"{theirs}.weight" for ours, theirs in _NORMS[family].items()}
    inner = {f"core.{ours}": theirs for ours, theirs in {**norms, **_LAYER}.items()}
    layers = [
        place(path, f"model.layers.{layer}.{theirs}", specs[path], layer)
        for layer in range(config.schedule.num_blocks)
        for path, theirs in inner.items()
        if path in specs
    ]
    outer = [place(path, name, specs[path], None) for path, name in _OUTER.items() if path in specs]
    found = [*outer[:1], *layers, *outer[1:]]
    if missing := specs.keys() - {each.path for each in found}:
        raise ValueError(f"{min(missing)}: {family} has no parameter of this kind")
    return found


def _place(path: Path, name: str, spec: Spec, entry: int | None, is_less: bool) -> Place:
    ours = spec.shape[spec.bank :]
    is_norm = is_less and (path.startswith("core.norms.") or path == "final_norm")
    shape = ours
    if path == "depth.gate.weight":
        shape = (1, *ours)
    elif path == "depth.gate.bias":
        shape = (1,)
    elif path.endswith("_bias"):
        shape = (int(np.prod(ours)),)
    elif spec.is_decayed and not path.startswith("embed."):
        taken, given = ours[: spec.inputs], ours[spec.inputs :]
        shape = (int(np.prod(given)), int(np.prod(taken)))
    return Place(name, shape, path, entry, ours, is_norm)


def leaves(tree: Any) -> Iterator[tuple[Path, Any]]:
    """Yields the leaves of a parameter tree by dotted path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def by_path(found: list[Place]) -> Mapping[Path, list[Place]]:
    """Returns the places of each leaf, in the order of its bank."""
    grouped: dict[Path, list[Place]] = {}
    for place in found:
        grouped.setdefault(place.path, []).append(place)
    return grouped
