"""The models that `train_step.py` times: a preset in some shape, and what it is set against."""

import dataclasses
from typing import Any

import jax

from recursia import budget, config, kinds, matching, settings
from recursia.architecture import Model
from recursia.errors import ConfigError

WIDTHS = ("embed_dim", "head_dim", "mlp_dim", "expert_dim")  # of a block, scaled together


@dataclasses.dataclass(frozen=True)
class Shape:
    """How large models are made; 0 leaves what the preset has.

    Attributes:
      cut: divides layers, widths, vocabulary and tokens of a sequence, where nothing else is said.
      layers: of every model, or the nearest number that its recursions divide.
      width: of the residual stream; all other widths of the block go with it.
      seq_len: tokens of a sequence.
      batch_size: sequences of a step.
    """

    cut: int = 1
    layers: int = 0
    width: int = 0
    seq_len: int = 0
    batch_size: int = 16

    def of(self, run: settings.Run) -> settings.Run:
        """Returns the run in this shape."""
        model, length = run.model, self.seq_len or run.train.seq_len // self.cut
        scale = (self.width or model.block.embed_dim / self.cut) / model.block.embed_dim
        even = lambda value: max(2, 2 * round(value * scale / 2))

        def cut(part: Any, **inner: Any) -> Any:
            widths = {name: even(getattr(part, name)) for name in WIDTHS if hasattr(part, name)}
            return dataclasses.replace(part, **inner, **widths)

        parts = {name: cut(getattr(model.block, name)) for name in ("mixer", "feedforward")}
        model = dataclasses.replace(
            model,
            block=cut(model.block, **parts),
            vocab_size=budget.vocab_size(run) // self.cut,
        )
        train = dataclasses.replace(
            run.train, seq_len=length, batch_size=self.batch_size, num_microbatches=1
        )
        model = _deep(model, self.layers or max(1, model.num_layers // self.cut))
        return dataclasses.replace(run, model=model, train=train)


def _deep(model: Model, wanted: int) -> Model:
    """Returns the model with the number of layers nearest to `wanted` that it can have."""
    for layers in sorted(range(1, 2 * (wanted + model.num_layers)), key=lambda n: abs(n - wanted)):
        try:
            return dataclasses.replace(model, num_layers=layers)
        except ValueError:  # its recursions do not divide it
            continue
    raise ConfigError(f"--layers={wanted}: the model has no number of layers near it")


def load(name: str, shape: Shape, overrides: dict[str, str]) -> settings.Run:
    """Returns a preset in a shape, nothing rematerialised, then with overrides."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return shape.of(config.load(name, {"model.dtype": dtype, "train.remat": "none", **overrides}))


def rivals(run: settings.Run, versus: settings.Run | None) -> dict[str, settings.Run]:
    """Returns what a run is set against, by name: "dense" and "full_capacity" as it has them."""
    found, depth = {}, run.model.depth
    if versus is None and not is_dense(run):
        versus = matching.controls(run)["equal_flops"]
    if versus is not None:
        found["dense"] = dataclasses.replace(versus, train=run.train)
    if hasattr(depth, "capacity"):
        depth = dataclasses.replace(depth, capacity=(1.0,) * depth.num_recursions)
        found["full_capacity"] = dataclasses.replace(
            run, model=dataclasses.replace(run.model, depth=depth)
        )
    return found


def is_dense(run: settings.Run) -> bool:
    """Returns whether the model is a plain stack of blocks without experts, each applied once."""
    block, depth = run.model.block, run.model.depth
    parts = map(kinds.kind_of, (block, block.mixer, block.feedforward, depth))
    plain = ("pre_norm", "grouped_query", "swiglu", "fixed")
    return tuple(parts) == plain and depth.num_recursions == 1
