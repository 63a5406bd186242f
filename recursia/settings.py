"""Every setting of a run and its default; a preset says where it differs, nothing else does."""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from typing import Annotated, Any, Literal

from recursia import inject as injection
from recursia import kv as kv_source
from recursia import model, sharding, typed
from recursia.blocks.block import Block
from recursia.layers import embedding
from recursia.ranges import LARGEST_SEED, MOST_LAYERS, at_least, between, fraction
from recursia.sharing import grid, tied
from recursia.sharing.core import Remat, Saves

Place = Annotated[str, typed.Path()]
Texts = Annotated[str, typed.Path("bundled:.*")]
Tokens = Annotated[str, typed.Path("byte|bpe:.*")]
Distance = Literal["forward_kl", "reverse_kl", "js", "tvd"]


@dataclasses.dataclass(frozen=True)
class Model:
    """The model, as a point on the axes block, sharing, weights, depth, inject, kv.

    Attributes:
      num_layers: effective depth: block applications of a token that takes every recursion.
      block: what one step does; `kind` names a module of `recursia.blocks`, and its `mixer` and
        `feedforward` name theirs. A field of these may be named without them.
      depth: how often each token goes round; `kind` names a module of `recursia.depth`.
      sharing: "none", "cycle", "sequence", "middle_cycle" or "middle_sequence".
      varies: per slot (attention, mlp, norms, router), where it differs from `sharing`: "block",
        "recursion", "recursion+block", "one", groups such as "block/2", or a table.
      prelude: unshared blocks before the core; none takes one for a "middle_" pattern, else 0.
      coda: unshared blocks after it, likewise.
      weights: how a shared weight becomes a step's; `kind` names a module of `recursia.sharing`.
      inject: what a recursion is told when it starts.
      loop_norm: where the final norm stands besides before the head: "none", after "each"
        recursion, or after the "last".
      kv: whose keys and values a step reads.
      embed: embedding and head.
      vocab_size: rows of the embedding; 0 takes the tokenizer's.
      dtype: compute dtype; parameters and optimizer are float32.
      remat: what the backward pass computes again: nothing, each block, or each recursion.
      remat_saves: what it keeps of that all the same: "nothing", what "attention" read, or the
        "products" with weights.
    """

    num_layers: int
    block: Block
    depth: Any
    sharing: grid.Pattern = "none"
    varies: tuple[tuple[str, str | grid.Table], ...] = ()
    prelude: int | None = None
    coda: int | None = None
    weights: Any = dataclasses.field(default_factory=tied.Config)
    inject: injection.Config = dataclasses.field(default_factory=injection.Config)
    loop_norm: model.LoopNorm = "none"
    kv: kv_source.Config = dataclasses.field(default_factory=kv_source.Config)
    embed: embedding.Config = dataclasses.field(default_factory=embedding.Config)
    vocab_size: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"
    remat_saves: Saves = "nothing"

    def __post_init__(self):
        between(1, MOST_LAYERS, self, "num_layers")
        at_least(0, self, "vocab_size")
        ends = (end for end in ("prelude", "coda") if getattr(self, end) is not None)
        between(0, MOST_LAYERS, self, *ends)
        self.build(max(self.vocab_size, 1))  # refuses what cannot be combined

    def build(self, vocab_size: int) -> model.Config:
        """Returns the model with so many rows in its embedding.

        Raises:
          ValueError: for a depth that does not divide, or parts that cannot be combined.
        """
        depth, specs = model.module(self.depth), self.block.specs(self.num_layers)
        plan = grid.plan(
            self.num_layers,
            self.depth.num_recursions,
            self.sharing,
            self.varies,
            self.block.slots,
            depth.SLOTS,
            model.module(self.weights).slots(self.weights, specs),
            (self.prelude, self.coda),
        )
        same = ("block", "depth", "kv", "embed", "weights", "inject", "loop_norm", "dtype")
        same += ("remat", "remat_saves")
        config = model.Config(
            vocab_size=vocab_size, grid=plan, **{name: getattr(self, name) for name in same}
        )
        model.check(config)
        return config


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
class Optimizer:
    """AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101) after clipping by the global norm.

    Attributes:
      learning_rate: at its peak.
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: added to the root.
      weight_decay: of matrices and embeddings, times the learning rate; norms have none.
      clip_norm: largest global norm of the gradient; 0 does not clip.
      trainable: dotted paths of the parameters that train, each with all below it, such as "depth"
        or "core.attention"; empty trains all. The others stay as they are.
    """

    learning_rate: float = 3e-3
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    trainable: tuple[str, ...] = ()

    def __post_init__(self):
        at_least(0, self, "learning_rate", "weight_decay", "clip_norm")
        at_least(1e-37, self, "eps")  # less is 0 in float32, and divides what has no gradient
        for name in ("b1", "b2"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: got {value}, takes 0 or more, and less than 1")


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
      seed: of the parameters.
      init_from: another run's directory, whose latest parameters this one starts from; empty draws
        them. A run that resumes does not read it.
    """

    num_steps: int
    batch_size: int
    seq_len: int
    num_microbatches: int = 1
    loss_chunk: int = 128
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
      topology: the machine it is meant for, such as "v5e:16x16" or "h100:8"; "" is any.
    """

    model: Model
    data: Data
    train: Train
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    distill: Distill = dataclasses.field(default_factory=Distill)
    mesh: sharding.Config = dataclasses.field(default_factory=sharding.Config)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    eval: Eval = dataclasses.field(default_factory=Eval)
    log: Log = dataclasses.field(default_factory=Log)
    topology: str = ""

    def __post_init__(self):
        depth = self.model.depth
        if self.train.seq_len % (parts := getattr(depth, "parts", 1)):
            raise ValueError(
                f"model.depth.parts: {parts} do not divide the {self.train.seq_len} tokens of "
                "train.seq_len; change one of them"
            )
        if self.distill.exits and model.module(depth).num_exits(depth) < 2:
            raise ValueError(
                f"distill.exits: depth {kind(depth)!r} trains the last state alone; take depth "
                "'exit_gate', or 'fixed' with an exit_loss"
            )


# Fields of the model that say how a step is computed, and nothing of what.
EXECUTION = ("remat", "remat_saves")
# Fields that name a module by its kind, and where these are.
KINDS = {
    "block": "recursia.blocks",
    "mixer": "recursia.mixers",
    "feedforward": "recursia.feedforward",
    "depth": "recursia.depth",
    "weights": "recursia.sharing",
}


def kind(config: Any) -> str:
    """Returns the name of the module that the class of a field of `KINDS` belongs to."""
    return type(config).__module__.rpartition(".")[2]


@functools.cache
def kinds(field: str) -> tuple[str, ...]:
    """Returns the names that `kind` takes in a field of `KINDS`, in order."""
    package = importlib.import_module(KINDS[field])
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in names if kind_config(KINDS[field], name)))


def kind_config(package: str, name: str) -> type | None:
    """Returns the class of a module that is a kind, or None if it has none.

    It is called `Config`, or as the module is and extends a base class of the package.
    """
    try:
        module = vars(importlib.import_module(f"{package}.{name}"))
    except ModuleNotFoundError:
        return None
    named = {key.lower(): value for key, value in module.items() if inspect.isclass(value)}
    cls = named.get(name.replace("_", ""), object)
    bases = (base.__module__ for base in cls.__mro__[1:])
    is_kind = any(base.startswith(f"{package}.") for base in bases)
    return cls if is_kind else named.get("config")


def former(field: str, name: str) -> str:
    """Returns what a kind that is no more has become, in words; "" if there never was such."""
    return getattr(importlib.import_module(KINDS[field]), "FORMER", {}).get(name, "")
