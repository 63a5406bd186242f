"""The models that `train_step.py` times: a preset in some shape, and its baselines."""

import dataclasses
from typing import Any

import jax

from recursia import budget, config, kinds, matching, settings
from recursia.architecture import Model
from recursia.depth import expert_choice, fixed
from recursia.errors import ConfigError

WIDTHS = ("embed_dim", "head_dim", "mlp_dim", "expert_dim")  # of a block, scaled together


@dataclasses.dataclass(frozen=True)
class Shape:
    """The size of models; 0 takes the preset's.

    Attributes:
      cut: divides layers, widths, vocabulary and tokens of a sequence that no other field sets.
      layers: of every model, or the nearest number that its recursions divide.
      width: of the residual stream; all other widths of the block scale with it.
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
    """Returns a preset in a shape, without rematerialisation, then with overrides."""
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return shape.of(config.load(name, {"model.dtype": dtype, "train.remat": "none", **overrides}))


def rivals(run: settings.Run, versus: settings.Run | None) -> dict[str, settings.Run]:
    """Returns the baselines of a run, by name: "dense" and "full_capacity", if they differ."""
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
    """Returns whether the model is an unshared stack of Llama blocks, each applied once."""
    block, depth = run.model.block, run.model.depth
    parts = map(kinds.kind_of, (block, block.mixer, block.feedforward, depth))
    plain = ("pre_norm", "grouped_query", "swiglu", "fixed")
    return tuple(parts) == plain and depth.num_recursions == 1


def is_llama(run: settings.Run) -> bool:
    """Returns whether `llama_torch.py` has the model: see `check_llama`."""
    try:
        check_llama(run)
    except ConfigError:
        return False
    return True


def check_llama(run: settings.Run) -> None:
    """Raises ConfigError unless the model is a stack of Llama blocks that `llama_torch.py` has.

    Blocks may be shared over recursions, which may choose their tokens by expert choice as released
    and read the first recursion's keys.
    """
    model, depth = run.model, run.model.depth
    block = model.block
    parts = (block, block.mixer, block.feedforward, model.weights)
    is_plain = tuple(map(kinds.kind_of, parts)) == ("pre_norm", "grouped_query", "swiglu", "tied")
    is_plain &= block.norm == "rms" and block.mixer == _plain(block.mixer)
    is_plain &= model.inject == type(model.inject)() and not model.kv.window
    is_plain &= len({tuple(model.schedule.entry(slot)) for slot in block.slots}) == 1
    is_plain &= model.schedule.is_plain and model.embed == _plain_embedding(model.embed)
    released = expert_choice.ExpertChoice(
        depth.num_recursions,
        capacity=getattr(depth, "capacity", None),
        alpha=getattr(depth, "alpha", 0.1),
        aux_loss_weight=getattr(depth, "aux_loss_weight", 0.001),
    )
    if not (is_plain and depth in (fixed.Fixed(depth.num_recursions), released)):
        raise ConfigError(
            "--torch: has Llama blocks, plain or shared over recursions, and expert choice; give "
            "another preset, or none of --torch"
        )


def _plain(mixer: Any) -> Any:
    """Returns the mixer with the fields that a Llama does not have at their defaults."""
    names = ("num_heads", "num_kv_heads", "head_dim", "rope_base", "init")
    return type(mixer)(**{name: getattr(mixer, name) for name in names if hasattr(mixer, name)})


def _plain_embedding(embed: Any) -> Any:
    names = ("is_tied", "has_head_bias", "init_std", "head_init_std")
    return type(embed)(**{name: getattr(embed, name) for name in names if hasattr(embed, name)})
