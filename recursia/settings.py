"""Every setting of a run, with its default; a preset gives only the fields that differ."""

import dataclasses
import itertools
from typing import Annotated, Literal

from recursia import kinds, sharding, typed
from recursia.architecture import Model
from recursia.data.settings import Data
from recursia.learning_rate import Schedule
from recursia.optimizers.adamw import AdamW
from recursia.optimizers.optimizer import Optimizer
from recursia.ranges import LARGEST_SEED, MOST_LAYERS, above, at_least, between, fraction
from recursia.replicas import Replicas
from recursia.sharing.remat import Remat, Saves, Unit
from recursia.typed import Place

Distance = Literal["forward_kl", "reverse_kl", "js", "tvd"]


@dataclasses.dataclass(frozen=True)
class Train:
    """The length and size of training.

    Attributes:
      num_steps: updates of the parameters.
      batch_size: sequences per update, over all devices.
      seq_len: tokens per sequence.
      depths: the recursions that early steps take, as pairs (fraction of the steps, number of
        recursions until then), fractions ascending; later steps take those of `model.depth`. One
        program is compiled for each number.
      ties: how the block's slots vary in early steps, as pairs (fraction of the steps, a value of
        `model.varies` until then), fractions ascending; later steps have the model's own sharing.
        Weights that are untied start as copies, with their moments. One program is compiled for
        each plan.
      num_microbatches: microbatches per batch, for gradient accumulation. A loss that is not a sum
        over tokens, such as load balancing, is a mean over microbatches: it changes a little with
        their number.
      loss_chunk: tokens of each sequence whose logits exist at a time.
      remat: gradient checkpointing: the backward pass recomputes "none", each "block", or each
        "recursion".
      remat_saves: activations inside such a unit that are saved nevertheless: "nothing", the
        inputs of "attention", or the "products" with weights.
      deterministic: whether programs for a GPU leave out operations whose result depends on timing,
        such as sums by atomics, so that the same step gives the same bits; those for a CPU or a TPU
        have none.
      seed: of the initial parameters.
      init_from: another run's directory, whose latest parameters are the initial ones; empty draws
        them. A run that resumes does not read it.
    """

    num_steps: int
    batch_size: int
    seq_len: int
    depths: tuple[tuple[float, int], ...] = ()
    ties: tuple[tuple[float, str], ...] = ()
    num_microbatches: int = 1
    loss_chunk: int = 128
    remat: Unit = "none"
    remat_saves: Saves = "nothing"
    deterministic: bool = True
    seed: int = 0
    init_from: Place = ""

    def __post_init__(self):
        at_least(1, self, "num_steps", "batch_size", "seq_len", "num_microbatches", "loss_chunk")
        between(0, LARGEST_SEED, self, "seed")
        for name, pairs in {"depths": self.depths, "ties": self.ties}.items():
            ends = [0.0, *(end for end, _ in pairs), 1.0]
            if any(end <= before for before, end in itertools.pairwise(ends)):
                raise ValueError(
                    f"{name}: got fractions {', '.join(map(str, ends[1:-1]))}, takes numbers "
                    "between 0 and 1 that ascend"
                )
        if self.batch_size % self.num_microbatches:
            raise ValueError(
                f"num_microbatches: {self.num_microbatches} do not divide batch_size "
                f"{self.batch_size}; take a divisor"
            )

    def phases(self) -> list[tuple[int, int | None, str | None]]:
        """Returns the phases: the step that ends each, its recursions and its sharing.

        None is the model's own number or sharing.
        """
        whole = [end for end, _ in (*self.depths, *self.ties, (1.0, ""))]
        found = []
        for end in sorted(set(whole)):
            depth = next((depth for until, depth in self.depths if end <= until), None)
            how = next((how for until, how in self.ties if end <= until), None)
            found.append((round(end * self.num_steps), depth, how))
        return found

    @property
    def rematerialisation(self) -> Remat:
        """The rematerialisation: its unit, and the activations that are saved nevertheless."""
        return Remat(self.remat, self.remat_saves)


@dataclasses.dataclass(frozen=True)
class Distill:
    """Distillation from a teacher model, or from the last recursion to earlier exits.

    A state with a teacher has the loss `weight` * distance + (1 - `weight`) * cross-entropy. With
    `layers`, `layer_weight` * the distance of their states from the teacher's is added.

    Attributes:
      teacher: another run's directory, whose latest parameters teach the last state, or a
        checkpoint from elsewhere; empty has none. It needs the same tokenizer.
      exits: whether the last state teaches the earlier ones, if `model.depth` trains those.
      kind: the distance from the teacher; see `recursia.train.distill`.
      temperature: divides the logits of both; the distance is multiplied by its square.
      weight: of that distance, from 0 to 1.
      layers: last layers whose states are to be the teacher's; 0 has none.
      teacher_layers: the teacher's layer for each of them, numbered from 0; empty takes its last.
      layer_weight: of the distance of those states, relative to the size of the teacher's.
    """

    teacher: Place = ""
    exits: bool = False
    kind: Distance = "forward_kl"
    temperature: float = 1.0
    weight: float = 0.5
    layers: int = 0
    teacher_layers: tuple[int, ...] = ()
    layer_weight: float = 1.0

    def __post_init__(self):
        fraction(self, "weight")
        above(0, self, "temperature", "layer_weight")
        between(0, MOST_LAYERS, self, "layers")
        if self.layers and not self.teacher:
            raise ValueError(f"layers: {self.layers} layers learn from none; name a teacher")
        if self.teacher_layers and len(self.teacher_layers) != self.layers:
            raise ValueError(
                f"teacher_layers: got {len(self.teacher_layers)} for {self.layers} layers; give "
                "one each"
            )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the state is saved. It is always saved at the end and after a signal to stop.

    Attributes:
      every_steps: steps between saves; 0 saves only at the end and after a signal.
      keep: number of checkpoints kept, the latest.
      keep_every: checkpoints of steps that are multiples of it are kept too; 0 keeps none for that.
      keep_best: number of checkpoints kept for the lowest validation loss, of steps that are both
        saved and validated.
    """

    every_steps: int = 1000
    keep: int = 3
    keep_every: int = 0
    keep_best: int = 1

    def __post_init__(self):
        at_least(0, self, "every_steps", "keep_every", "keep_best")
        at_least(1, self, "keep")


@dataclasses.dataclass(frozen=True)
class Divergence:
    """What happens when training diverges.

    It does if a loss or a gradient is not finite, or if a loss is a spike: above the median of the
    last losses by more than `deviations` times their deviation. That is 1.4826 times the median
    difference from the median, and at least 0.1 nats per token. Losses count once the host has
    read them, which is one step late, so the third step is the first with a limit.

    Attributes:
      policy: "stop" ends the run; "skip" leaves the parameters as they are and takes the next
        batch; "roll_back" returns to the last checkpoint, and goes on with the batches after those
        that were seen.
      window: the number of last losses.
      deviations: of those losses, up to which a loss is none; 0 lets every finite loss pass.
      most: skipped steps or returns between two checkpoints, beyond which the run ends.
    """

    policy: Literal["stop", "skip", "roll_back"] = "stop"
    window: int = 100
    deviations: float = 20.0
    most: int = 10

    def __post_init__(self):
        between(1, 10_000, self, "window")
        at_least(0, self, "deviations", "most")


@dataclasses.dataclass(frozen=True)
class Eval:
    """Validation and samples during training.

    Attributes:
      every_steps: steps between validations; 0 validates at the end only.
      num_batches: batches of the validation split to read; 0 reads all.
      prompts: texts that samples continue; none draws no samples.
      sample_tokens: tokens per sample.
      temperature: of samples; 0 takes the likeliest token.
    """

    every_steps: int = 1000
    num_batches: int = 0
    prompts: tuple[Annotated[str, typed.Text()], ...] = ()
    sample_tokens: int = 64
    temperature: float = 0.8

    def __post_init__(self):
        at_least(0, self, "every_steps", "num_batches", "temperature")
        at_least(1, self, "sample_tokens")
        if not all(self.prompts):
            raise ValueError("prompts: one is empty; give it a character, or leave it out")


@dataclasses.dataclass(frozen=True)
class Log:
    """Metrics that are written during training.

    Attributes:
      every_steps: steps between rows of metrics.jsonl.
      sinks: what gets them besides metrics.jsonl: "tensorboard", "wandb", or the dotted path of
        your own subclass of `recursia.train.sinks.sink.Sink`.
    """

    every_steps: int = 10
    sinks: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self):
        at_least(1, self, "every_steps")


@dataclasses.dataclass(frozen=True)
class Run:
    """A configuration; each attribute is a section, except `topology`.

    Attributes:
      optimizer: the update rule; `kind` names a module of `recursia.optimizers`.
      topology: the devices it is written for, such as "v5e:16x16" or "h100:8"; "" is any.
    """

    model: Model
    data: Data
    train: Train
    optimizer: Optimizer = dataclasses.field(default_factory=AdamW)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    distill: Distill = dataclasses.field(default_factory=Distill)
    mesh: sharding.MeshConfig = dataclasses.field(default_factory=sharding.MeshConfig)
    replicas: Replicas = dataclasses.field(default_factory=Replicas)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    divergence: Divergence = dataclasses.field(default_factory=Divergence)
    eval: Eval = dataclasses.field(default_factory=Eval)
    log: Log = dataclasses.field(default_factory=Log)
    topology: str = ""

    def __post_init__(self):
        self.model.depth.check_length(self.train.seq_len)
        self.model.embed.check_length(self.train.seq_len)
        if conflict := self.optimizer.conflict(self.schedule.kind):
            raise ValueError(f"optimizer.kind: {conflict}")
        if self.train.ties and self.replicas.count:
            raise ValueError(
                f"replicas.count: got {self.replicas.count}, and train.ties has "
                f"{len(self.train.ties)} phases of other parameters, which replicas do not have; "
                "take 0, or no train.ties"
            )
        for end, depth, how in self.train.phases():
            for name, recursions in (("ties", None), ("depths", depth)):
                try:
                    self.model.in_phase(recursions, how)
                except ValueError as error:
                    raise ValueError(f"train.{name}: until step {end:,}: {error}") from None
            if (fewest := self.model.in_phase(depth, how).num_layers) < self.distill.layers:
                raise ValueError(
                    f"distill.layers: got {self.distill.layers}, and the model has {fewest} until "
                    f"step {end:,}; take at most {fewest}"
                )
        if self.distill.layers and self.model.is_resized:
            raise ValueError(
                "distill.layers: layers have two widths (model.end_sizes), and a teacher's have "
                "one; take 0"
            )
        if self.distill.layers and (count := self.model.parallel.num_copies) > 1:
            raise ValueError(
                f"distill.layers: a token has the states of {count} copies (model.parallel), and a "
                "teacher's has those of one; take 0"
            )
        if self.distill.layers and not self.model.depth.is_layered:
            raise ValueError(
                f"distill.layers: under depth {kinds.kind_of(self.model.depth)!r} tokens take "
                "other steps, or other times; take depth 'fixed', or 0"
            )
        if self.distill.exits and self.model.depth.num_exits < 2:
            name = kinds.kind_of(self.model.depth)
            raise ValueError(
                f"distill.exits: depth {name!r} trains the last state alone; take depth "
                "'exit_gate', or 'fixed' with an exit_loss"
            )
