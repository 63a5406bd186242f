"""Every setting of a run and its default; a preset says where it differs, nothing else does."""

import dataclasses
import functools
import importlib
import pkgutil
from typing import Annotated, Any, Literal

from recursia import sharding, typed
from recursia.architecture import Model
from recursia.blocks.block import Block
from recursia.depth.policy import Policy
from recursia.feedforward.feedforward import FeedForward
from recursia.mixers.mixer import Mixer
from recursia.optimizers.adamw import AdamW
from recursia.optimizers.optimizer import Optimizer
from recursia.ranges import LARGEST_SEED, at_least, between, fraction
from recursia.sharing.remat import Remat, Saves, Unit
from recursia.sharing.weights import Weights

Place = Annotated[str, typed.Path()]
Texts = Annotated[str, typed.Path("bundled:.*")]
Tokens = Annotated[str, typed.Path("byte|bpe:.*")]
Distance = Literal["forward_kl", "reverse_kl", "js", "tvd"]


@dataclasses.dataclass(frozen=True)
class Data:
    """What the model reads.

    Attributes:
      path: directories written by `recursia data prepare`, mixed by `weights`; `text` is then
        not read. Where `path` or `text` is typed, no data of the configuration's file is read.
      weights: relative number of rows drawn from each path; empty draws alike.
      text: files to prepare inside the workdir when there is no `path`; "bundled:train" is the
        bundled corpus.
      validation_text: files of the validation split; empty sets documents of `text` aside.
      validation_fraction: of the documents of `text`, where no validation files are given, in
        [0, 1); 0 validates on nothing.
      tokenizer: for `text`: "byte", "bpe:SIZE", a tokenizer.json, or a folder with GPT-2's files.
      end_of_text: name of the token that ends a text, in such a file; empty looks for the usual.
      cross_document_attention: whether tokens see earlier documents of their row.
      on_error: "stop" at a broken line, or "skip" it.
      seed: of the order of rows.
    """

    path: tuple[Place, ...] = ()
    weights: tuple[float, ...] = ()
    text: tuple[Texts, ...] = ()
    validation_text: tuple[Texts, ...] = ()
    validation_fraction: float = 0.05
    tokenizer: Tokens = "byte"
    end_of_text: str = ""
    cross_document_attention: bool = True
    on_error: Literal["stop", "skip"] = "stop"
    seed: int = 0

    def __post_init__(self):
        if not self.path and not self.text:
            raise ValueError("path: no data; give folders as data.path, or text files as data.text")
        if self.weights and len(self.weights) != len(self.path):
            raise ValueError(f"weights: got {len(self.weights)} for {len(self.path)} paths")
        if not all(weight > 0 for weight in self.weights):
            raise ValueError(f"weights: got {self.weights}, takes numbers above 0")
        between(0, LARGEST_SEED, self, "seed")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction: got {self.validation_fraction}, takes a number in [0, 1)"
            )


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate over training, as a factor of its peak.

    Attributes:
      kind: after the warm-up, "constant", "cosine", or "wsd": stable, then a linear decay.
      warmup_steps: steps of the linear warm-up from 0.
      decay_fraction: of all steps, the length of the decay of "wsd"; 0 has none.
      final_fraction: of the peak, what is left at the end.
    """

    kind: Literal["constant", "cosine", "wsd"] = "wsd"
    warmup_steps: int = 0
    decay_fraction: float = 0.2
    final_fraction: float = 0.0

    def __post_init__(self):
        at_least(0, self, "warmup_steps")
        fraction(self, "decay_fraction", "final_fraction")

    def conflict(self, num_steps: int) -> str:
        """Returns what keeps it from its course in so many steps, field first; "" if nothing."""
        warm, decay = self.warmup_steps, max(round(self.decay_fraction * num_steps), 1)
        if warm and warm >= num_steps:
            return (
                f"schedule.warmup_steps: {warm} steps of the {num_steps} of train.num_steps warm "
                "up, and the learning rate never comes to its peak; lower it, or take more steps"
            )
        if self.kind == "wsd" and warm + decay > num_steps:
            return (
                f"schedule.decay_fraction: {self.decay_fraction} of the {num_steps} steps of "
                f"train.num_steps is a decay of {decay}, which begins in the {warm} of "
                "schedule.warmup_steps; lower one"
            )
        return ""


@dataclasses.dataclass(frozen=True)
class Train:
    """The length and size of training.

    Attributes:
      num_steps: updates of the parameters.
      batch_size: sequences of an update, over all devices.
      seq_len: tokens of a sequence.
      num_microbatches: parts of a batch whose gradients are summed one after the other. Losses
        that are no sums over tokens, such as those that even out experts, are means over the parts:
        they differ a little with the number of parts.
      loss_chunk: tokens of each sequence whose logits exist at a time.
      remat: what the backward pass computes again: nothing, each block, or each recursion.
      remat_saves: what it keeps of that all the same: "nothing", what "attention" read, or the
        "products" with weights.
      seed: of the parameters.
      init_from: another run's directory, whose latest parameters this one starts from; empty draws
        them. A run that resumes does not read it.
    """

    num_steps: int
    batch_size: int
    seq_len: int
    num_microbatches: int = 1
    loss_chunk: int = 128
    remat: Unit = "none"
    remat_saves: Saves = "nothing"
    seed: int = 0
    init_from: Place = ""

    def __post_init__(self):
        at_least(1, self, "num_steps", "batch_size", "seq_len", "num_microbatches", "loss_chunk")
        between(0, LARGEST_SEED, self, "seed")
        if self.batch_size % self.num_microbatches:
            raise ValueError(
                f"num_microbatches: {self.num_microbatches} parts do not divide batch_size "
                f"{self.batch_size}"
            )

    @property
    def rematerialisation(self) -> Remat:
        """What the backward pass computes again, and what it keeps of that."""
        return Remat(self.remat, self.remat_saves)


@dataclasses.dataclass(frozen=True)
class Distill:
    """What is learnt from another distribution of the next token than the text.

    A state that has a teacher learns from it by `weight`, and from the text by the rest.

    Attributes:
      teacher: another run's directory, whose latest parameters teach the last state; empty has
        none. It needs the same tokenizer.
      exits: whether the last state teaches the earlier ones, where `model.depth` trains those.
      kind: the distance from the teacher; see `recursia.train.distill`.
      weight: of that distance, from 0 to 1.
    """

    teacher: Place = ""
    exits: bool = False
    kind: Distance = "forward_kl"
    weight: float = 0.5

    def __post_init__(self):
        fraction(self, "weight")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When the state is saved, besides at the end and when the run is told to stop.

    Attributes:
      every_steps: steps between saves; 0 saves only then.
      keep: how many of the latest saves stay.
    """

    every_steps: int = 1000
    keep: int = 3

    def __post_init__(self):
        at_least(0, self, "every_steps")
        at_least(1, self, "keep")


@dataclasses.dataclass(frozen=True)
class Eval:
    """Validation and samples during training.

    Attributes:
      every_steps: steps between validations; 0 validates at the end only.
      num_batches: batches of the validation split that are read; 0 reads all.
      prompts: beginnings that samples continue; none draws no samples.
      sample_tokens: tokens of a sample.
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
            raise ValueError(
                "prompts: one is empty; give each at least one character, or no prompts"
            )


@dataclasses.dataclass(frozen=True)
class Log:
    """What is written while training.

    Attributes:
      every_steps: steps between rows of metrics.jsonl.
      tensorboard: whether the same numbers go to TensorBoard files.
    """

    every_steps: int = 10
    tensorboard: bool = True

    def __post_init__(self):
        at_least(1, self, "every_steps")


@dataclasses.dataclass(frozen=True)
class Run:
    """A whole configuration; one attribute a section.

    Attributes:
      optimizer: how gradients change parameters; `kind` names a module of `recursia.optimizers`.
      topology: the machine it is meant for, such as "v5e:16x16" or "h100:8"; "" is any.
    """

    model: Model
    data: Data
    train: Train
    optimizer: Optimizer = dataclasses.field(default_factory=AdamW)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    distill: Distill = dataclasses.field(default_factory=Distill)
    mesh: sharding.MeshConfig = dataclasses.field(default_factory=sharding.MeshConfig)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    eval: Eval = dataclasses.field(default_factory=Eval)
    log: Log = dataclasses.field(default_factory=Log)
    topology: str = ""

    def __post_init__(self):
        self.model.depth.check_length(self.train.seq_len)
        if self.distill.exits and self.model.depth.num_exits < 2:
            raise ValueError(
                f"distill.exits: depth {kind(self.model.depth)!r} trains the last state alone; "
                "take depth 'exit_gate', or 'fixed' with an exit_loss"
            )


# Fields that name a module, and the base of what it holds.
KINDS: dict[str, type] = {
    "block": Block,
    "mixer": Mixer,
    "feedforward": FeedForward,
    "depth": Policy,
    "weights": Weights,
    "optimizer": Optimizer,
}


def kind(config: Any) -> str:
    """Returns the name of the module that a kind's settings belong to."""
    return type(config).__module__.rpartition(".")[2]


@functools.cache
def kinds(field: str) -> tuple[str, ...]:
    """Returns the names that `kind` takes in a field of `KINDS`, in order."""
    package = importlib.import_module(KINDS[field].__module__.rpartition(".")[0])
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in names if kind_config(field, name)))


def kind_config(field: str, name: str) -> type | None:
    """Returns the class of that kind in a field of `KINDS`, or None if there is none."""
    base = KINDS[field]
    package = base.__module__.rpartition(".")[0]
    try:
        module = importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError:
        return None
    own = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
    return next((c for c in own if c is not base and c.__module__ == module.__name__), None)


def former(field: str, name: str) -> str:
    """Returns what a kind that is no more has become, in words; "" if there never was such."""
    package = importlib.import_module(KINDS[field].__module__.rpartition(".")[0])
    return getattr(package, "FORMER", {}).get(name, "")
