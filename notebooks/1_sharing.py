# %% [markdown]
# # Sharing across depth
#
# A transformer applies one block after the other. A model that *shares across depth* applies the
# same block several times. This notebook looks at who uses which weights, what sharing saves, and
# what it does to the gradient.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import recursia
from recursia import accounting
from recursia.laws.copies import untied
from recursia.laws.numbers import gradient

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})

# %% tags=["parameters"] tiny="num_steps = 2"
num_steps = 150  # of the short training below

# %% [markdown]
# ## Who uses which weights
#
# A *step* is one application of a block. All weights of one kind lie in a *bank*, and a table says
# which entry of the bank each step uses. A *recursion* is one application of the whole stack. Here
# are the tables of some *patterns*, for three recursions and models of six to eight steps: equal
# colours are equal weights.

# %%
patterns = ("none", "cycle", "sequence", "middle_cycle", "middle_sequence")
models = {}
for pattern in patterns:
    layers = 8 if pattern.startswith("middle") else 6
    fields = {"sharing": pattern, "num_layers": layers, "depth.num_recursions": 3}
    models[pattern] = recursia.preset("looped:tiny", fields)

figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
for row, model in enumerate(models.values()):
    plan, ends = model.config.schedule, model.config.ends
    order = plan.entry("mlp")[plan.steps]  # in the order in which steps are applied
    names = ["first"] * ends["prelude"] + list(order) + ["last"] * ends["coda"]
    for column, name in enumerate(names):
        color = "lightgray" if isinstance(name, str) else plt.cm.Set2(int(name))
        axes.barh(row, 0.94, left=column, color=color)
        axes.text(column + 0.47, row, str(name), ha="center", va="center", fontsize=8)
axes.set(yticks=range(len(models)), yticklabels=models, xlabel="step", xticks=range(9))
axes.invert_yaxis()
axes.set_title("entry of the bank that each step uses", fontsize=10)
plt.show()

# %% [markdown]
# `cycle` goes through the stack and begins again; `sequence` repeats each block before the next.
# The `middle_` patterns keep a first block, the *prelude*, and a last one, the *coda*, unshared.
#
# ## What sharing saves
#
# *Unique* parameters are those that are stored and trained. *Applied* parameters are those that a
# token meets on its way. FLOPs follow the applied parameters, so that sharing saves memory and no
# computation.

# %%
names = ("none", "cycle", "middle_cycle")
unique = [accounting.unique_parameters(models[name].config) for name in names]
applied = [accounting.applied_parameters(models[name].config) for name in names]
flops = [accounting.forward_flops(models[name].config, 128) / 128 for name in names]
for name, *counts in zip(names, unique, applied, flops, strict=True):
    print("{:14} {:9,} unique {:9,} applied {:11,.0f} FLOPs per token".format(name, *counts))

figure, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
places = np.arange(len(names))
axes.barh(places - 0.2, unique, 0.38, label="unique parameters")
axes.barh(places + 0.2, applied, 0.38, label="applied parameters")
axes.set(yticks=places, yticklabels=names)
axes.xaxis.set_major_formatter(lambda count, _: f"{count / 1000:.0f} k")
axes.invert_yaxis()
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Share a part of a block
#
# Each *slot* of a block has its own table: `attention`, `mlp`, `norms`. With `varies`, the norms of
# each step can be their own while the matrices are shared. It costs little.

# %%
for varies in ("none", "norms", "attention"):
    fields = {} if varies == "none" else {f"varies.{varies}": "recursion+block"}
    model = recursia.preset("looped:tiny", fields)
    print(f"own in each step: {varies:10} {model.num_params:8,} unique parameters")

# %% [markdown]
# ## The gradient of shared weights is a sum
#
# Take a shared model and *untie* it: give every step a copy of its weights. Both compute the same
# function. Each copy then has its own gradient, and the gradient of the shared weights is the sum
# of those of the copies. We train a model of one block and six recursions for a moment, so that
# there is something to see.

# %%
recursia.command(
    "train --config=looped:tiny --workdir=runs/sharing --config.num_layers=6"
    " --config.depth.num_recursions=6 --config.eval.every_steps=0 --config.eval.num_batches=2"
    f" --config.eval.prompts= --config.train.num_steps={num_steps}"
    f" --config.schedule.warmup_steps={num_steps // 15}"
)
shared = recursia.load("runs/sharing")
print(shared)

# %%
free_config, free = untied(shared.config, shared.params)
text = (
    "The rain had stopped before they reached the village, and Mary asked for the way. An old man "
    "pointed at the church with his stick, and said nothing."
)
tokens = np.array([shared.tokenizer.encode(text)[:128]])

loss, grads = gradient(shared.params, tokens, shared.config)
free_loss, free_grads = gradient(free, tokens, free_config)
print(f"loss of the shared model {loss:.6f}, of its copies {free_loss:.6f} nats per token")

ours = grads["core"]["mlp"]["down"]
copies = free_grads["core"]["mlp"]["down"].reshape(6, *ours.shape[-2:])
difference = np.abs(copies.sum(0) - ours.reshape(ours.shape[-2:])).max()
print(f"largest gradient {np.abs(ours).max():.2e}, largest difference to the sum {difference:.0e}")

# %% [markdown]
# Do the six steps want the same change? The left picture has the length of the gradient of each
# copy, beside that of their sum. The right one has the cosine between the gradients of two copies:
# 1 where they agree, 0 where they have nothing to do with each other.

# %%
flat = np.asarray(copies.reshape(6, -1))
lengths = np.linalg.norm(flat, axis=1)
cosines = (flat @ flat.T) / np.outer(lengths, lengths)

figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.9), layout="constrained")
left.bar(range(1, 7), lengths, label="each copy")
left.axhline(np.linalg.norm(ours), color="black", linestyle="--", label="their sum")
left.set(xlabel="recursion", ylabel="length of the gradient", title="feed-forward, down")
left.legend(frameon=False)
shown = right.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu", extent=(0.5, 6.5, 6.5, 0.5))
right.set(xlabel="recursion", ylabel="recursion", title="cosine of two gradients")
figure.colorbar(shown)
plt.show()

# %% [markdown]
# If all gradients were orthogonal, their sum would be as long as the root of the sum of their
# squares; if all agreed, as long as the sum of their lengths. After so short a training they agree
# almost wholly: each recursion still wants the same of its block.

# %%
print(f"length of the sum {float(np.linalg.norm(ours)):.4f}")
print(f"sum of lengths {lengths.sum():.4f}, root of squares {np.sqrt((lengths**2).sum()):.4f}")

# %% [markdown]
# ## After one update
#
# Both models take one step of gradient descent, at equal rates and in the core alone. To first
# order the loss falls by the rate times the squared length of the gradient: of the sum for shared
# weights, of each copy for untied ones. If the steps agree, the shared model gets further at the
# same rate, by the number of uses; if they disagree, the copies do, as they may become different.

# %%
rates = np.geomspace(0.1, 10, 7)


def after(params, grads, config, rate):
    """Returns the loss after one step of gradient descent."""
    core = jax.tree.map(lambda p, g: p - rate * g, params["core"], grads["core"])
    return float(gradient({**params, "core": core}, tokens, config)[0])


figure, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
pairs = {"shared": (shared.params, grads, shared.config), "untied": (free, free_grads, free_config)}
for name, pair in pairs.items():
    axes.semilogx(rates, [after(*pair, rate) for rate in rates], "o-", label=name)
axes.axhline(float(loss), color="gray", linestyle=":", label="before")
axes.set(xlabel="learning rate", ylabel="nats per token", title="loss after one update")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# A learning rate of plain gradient descent that suits an unshared model can thus be too large for a
# shared one. Adam divides by the size of the gradient, which hides most of this; still, the rate is
# worth [a sweep](../docs/sweeps.md).
#
# Next: [tokens that choose their depth](2_routing.ipynb).
