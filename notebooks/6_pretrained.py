# %% [markdown]
# # A pretrained model made recursive
#
# A model need not start from nothing. The layers of a pretrained transformer can be folded into a
# recursive one: several layers become one block that is applied several times (Bae et al. 2024,
# arXiv 2410.20672). The result is worse at first, and a short training mends much of it.

# %%
import gzip
import json
import pathlib
from importlib import resources

import jax
import matplotlib.pyplot as plt
import numpy as np

import recursia
from recursia.convert.recursive import sources
from recursia.convert.recursive import uses as uses_of

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})

# %% tags=["parameters"] tiny="num_steps, ranks, starts = 2, (8, ), ('average', )"
folder = ""  # a Hugging Face folder of a Llama model of yours; empty makes a small one here
sharing, num_recursions = "middle_cycle", 3  # how its layers are folded
num_steps = 120  # of each training
ranks = (1, 8, 64)  # of adapters
starts = ("stepwise", "average", "lower", "upper")

# %% [markdown]
# ## The pretrained model
#
# Without a model of yours, we train a small one on the bundled novels and export it as a folder
# that `transformers` loads as a Llama model. From here on only the folder counts.

# %%
brief = (
    f" --config.train.num_steps={num_steps} --config.schedule.warmup_steps={num_steps // 15}"
    " --config.eval.every_steps=0 --config.eval.num_batches=2 --config.eval.prompts="
)
if not folder:
    folder = "runs/hf"
    recursia.command(f"train --config=vanilla:tiny --workdir=runs/pretrained{brief}")
    if not pathlib.Path(folder).exists():
        recursia.command(
            f"convert export --workdir=runs/pretrained --output={folder} --format=llama"
        )
dense = recursia.load(folder, overrides={"train.seq_len": 128})
print(dense, dense.config.num_layers, "layers")

# %% [markdown]
# All models below are scored on the same held-out pages.

# %%
packed = resources.files("recursia.corpus")


def pages(split, count):
    """Returns the first letters of a split of the bundled novels."""
    lines = gzip.decompress(packed.joinpath(f"{split}.jsonl.gz").read_bytes()).split(b"\n")
    return json.loads(lines[0])["text"][2000 : 2000 + count]


held_out = pages("validation", 4000)
best = dense.score(held_out).nats_per_token
print(f"pretrained: {best:.3f} nats per token")

# %% [markdown]
# ## Folding
#
# With `middle_cycle` the first and the last layer stay as they are, and the layers between become a
# stack that is applied several times. Each block of the stack has to start as something: as one
# layer, or as the mean of all layers that it replaces. Rows of the picture are the blocks of the
# stack, columns the layers of the pretrained model.

# %%
SHAPE = f" --config.sharing={sharing} --config.depth.num_recursions={num_recursions}"
SHORT = " --config.train.seq_len=128 --config.train.batch_size=8"


def folded(start, rank=0):
    """Returns the folder of a recursive model made of the pretrained one."""
    place = f"runs/folded/{start}_{rank}"
    adapters = f" --lora_rank={rank}" if rank else ""
    if not pathlib.Path(place).exists():
        recursia.command(
            f"convert recursive --workdir={folder} --init={start}{adapters} --output={place}"
            f"{SHAPE}{SHORT}"
        )
    return place


config = recursia.load(folded("average")).config
order = np.asarray(jax.random.permutation(jax.random.key(0), config.schedule.num_steps))
figure, panels = plt.subplots(1, 4, figsize=(8.5, 1.9), layout="constrained", sharey=True)
for axes, start in zip(panels, ("stepwise", "average", "lower", "upper"), strict=True):
    groups = uses_of(config, "mlp")
    picture = np.zeros((len(groups), config.num_layers))
    for row, (uses, taken) in enumerate(
        zip(groups, sources(config, "mlp", start, order), strict=True)
    ):
        picture[row, uses] = 0.25
        picture[row, taken] = 1
    axes.imshow(picture, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    axes.set(title=start, xlabel="layer", xticks=range(config.num_layers))
    axes.set_yticks(range(len(groups)), [f"block {row + 1}" for row in range(len(groups))])
plt.show()

# %% [markdown]
# Pale: the layers whose place a block takes. Dark: those that it starts as.
#
# ## Before any training
#
# Folding loses something. *Adapters* can hold part of what is lost: each step gets a low-rank
# product of its own, which starts as the nearest to the difference between its layer and the shared
# entry. (The difference is cut off after its largest singular values.)

# %%
plain = [recursia.load(folded(start)).score(held_out).nats_per_token for start in starts]
mended = [recursia.load(folded(start, 8)).score(held_out).nats_per_token for start in starts]
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
axes.plot(starts, plain, "o", markersize=8, label="shared")
axes.plot(starts, mended, "s", markersize=8, label="shared, adapters of rank 8")
axes.axhline(best, color="black", linestyle="--", label="pretrained")
axes.set(ylabel="nats per token")
axes.margins(x=0.15)
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# At full rank the adapters hold the whole difference, and the recursive model is the pretrained one
# again; it then has no fewer parameters than before. Between the two ends rank buys accuracy.

# %%
found = [recursia.load(folded("average", rank)) for rank in ranks]
losses = [model.score(held_out).nats_per_token for model in found]
for rank, model, loss in zip(ranks, found, losses, strict=True):
    part = model.num_params / dense.num_params
    print(f"rank {rank:3}: {part:.2f} of the parameters, {loss:.3f} nats per token")
figure, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
axes.semilogx(ranks, losses, "o-", base=2, label="average, before training")
axes.axhline(best, color="black", linestyle="--", label="pretrained")
axes.set_xticks(ranks, ranks)
axes.set(xlabel="rank of the adapters", ylabel="nats per token")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Uptraining
#
# The recursive model is then trained on, by the ordinary trainer: `train.init_from` names where the
# parameters come from, and `--config` takes the settings of that run. The data must have the
# tokenizer of the pretrained model.

# %%
if not pathlib.Path("runs/novels").exists():
    pathlib.Path("runs/novels.txt").write_text(pages("train", 400_000))
    recursia.command(
        "data prepare --input=runs/novels.txt --output=runs/novels"
        f" --tokenizer={folder}/tokenizer.json"
    )
curve = {}
for name, start in {"shared": folded("average"), "adapters": folded("average", 8)}.items():
    workdir = f"runs/uptrained/{name}"
    recursia.command(
        f"train --config={start} --workdir={workdir} --config.train.init_from={start}"
        f" --config.data.path=runs/novels --config.optimizer.learning_rate=1e-3{brief}"
    )
    before = recursia.load(start).score(held_out).nats_per_token
    model = recursia.load(workdir)
    curve[name] = (model.num_params, before, model.score(held_out).nats_per_token)

# %% [markdown]
# After so short a pretraining the recursive models can end below the pretrained one: they have been
# trained for longer. A fair comparison trains the pretrained model as much longer too;
# [weights](../docs/weights.md) has one, of a real model.

# %%
figure, axes = plt.subplots(figsize=(6, 2.8), layout="constrained")
for name, (size, before, after) in curve.items():
    axes.annotate("", (size, after), (size, before), arrowprops={"arrowstyle": "->"})
    axes.plot(size, before, "o", color="lightgray", markersize=9)
    axes.plot(size, after, "o", color="#4b93c9", markersize=9)
    axes.text(size, max(before, after), f"  {name}", va="bottom")
    print(f"{name:9} {size:8,} parameters: {before:.3f} before, {after:.3f} after")
axes.plot(dense.num_params, best, "k*", markersize=12)
axes.text(dense.num_params, best, "pretrained  ", ha="right", va="bottom")
axes.set(xlabel="unique parameters", ylabel="nats per token")
axes.margins(0.2)
axes.xaxis.set_major_formatter("{x:,.0f}")
plt.show()

# %% [markdown]
# The result is a run like any other: `recursia convert export --format=llama` unrolls it again into
# a folder for `transformers`, and without `--format` writes every shared weight once.
