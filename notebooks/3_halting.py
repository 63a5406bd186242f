# %% [markdown]
# # Halting: when has a token had enough?
#
# A router compares tokens with each other. A token can also decide alone, from its own state: it
# *halts* once a probability has added up, or once its state has stopped changing. This notebook
# puts three halting rules beside each other, trains a small model of each, and ends with the state
# of a recurrent model as it converges.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import recursia

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})

# %% tags=["parameters"] tiny="num_steps, num_points, longest, kinds = 2, 1, 4, kinds[1:2]"
num_steps = 120  # of each of four trainings
num_points = 4  # of each curve
longest = 16  # recursions of the recurrent model
kinds = ("act", "stick_breaking", "exit_gate")

# %% [markdown]
# ## Three rules, by hand
#
# After each recursion a small unit reads the state of a token and gives a number p between 0 and 1.
# What the rules make of the same numbers:
#
# - **Adaptive computation time** (Graves 2016) adds the p up and halts where the sum reaches 1. The
#   result is the mean of the states, weighted by p; the last one gets the *remainder*.
# - **Stick breaking** (Tan et al. 2023) takes p of what is left: a share of the token halts. The
#   result is the mean of the states, weighted by these shares.
# - **An exit gate** (Zhu et al. 2025) computes the same shares, and takes one state: the first at
#   which the shares add up to a threshold.

# %%
p = np.array([0.15, 0.25, 0.35, 0.45, 0.5, 0.6])
before = np.concatenate([[0], np.cumsum(p)[:-1]])
is_running = before < 1
act = np.where(is_running, np.minimum(p, 1 - before), 0)
left = np.concatenate([[1], np.cumprod(1 - p)[:-1]])
stick = p * left
stick[-1] = left[-1]
gate = (np.arange(len(p)) == np.argmax(np.cumsum(stick) >= 0.7)).astype(float)

shades = plt.cm.Blues(np.linspace(0.25, 0.95, len(p)))
figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
for row, weights in enumerate((act, stick, gate)):
    start = 0.0
    for recursion, weight in enumerate(weights):
        axes.barh(row, weight, 0.7, left=start, color=shades[recursion])
        if weight > 0.04:
            at, is_dark = start + weight / 2, recursion > 2
            axes.text(at, row, recursion + 1, ha="center", va="center", color="wk"[not is_dark])
        start += weight
rules = ("adaptive computation time", "stick breaking", "exit gate, threshold 0.7")
axes.set(yticks=range(3), yticklabels=rules, xlabel="weight of the state after each recursion")
axes.invert_yaxis()
plt.show()

# %% [markdown]
# ## Three trained models
#
# The same rules on a text, after a short training on the bundled novels. Each rule is a *depth
# policy*, and changing it is one field of a configuration. All three add a price to the loss: of
# recursions that are used, or of a gate that is too sure too soon.

# %%
CHOICES = {  # a rule: its configuration, and the field by which it halts sooner or later
    "act": ("universal:tiny", "depth.epsilon", (0.01, 0.2, 0.5, 0.8)),
    "stick_breaking": ("looped:tiny", "depth.threshold", (0.999, 0.9, 0.7, 0.4)),
    "exit_gate": ("ouro:tiny", "depth.exit_threshold", (1.0, 0.8, 0.6, 0.3)),
}
brief = (
    f" --config.train.num_steps={num_steps} --config.schedule.warmup_steps={num_steps // 15}"
    " --config.eval.every_steps=0 --config.eval.num_batches=2 --config.eval.prompts="
)
other = " --config.depth.kind=stick_breaking --config.depth.act_loss_weight=0.001"
for kind in kinds:
    rule = other if kind == "stick_breaking" else ""
    recursia.command(f"train --config={CHOICES[kind][0]} --workdir=runs/{kind}{rule}{brief}")
models = {kind: recursia.load(f"runs/{kind}") for kind in kinds}

# %% [markdown]
# `scores` has the numbers that a policy decided by: p for adaptive computation time, the part that
# has not halted yet for stick breaking, the shares for the exit gate. Each column is a byte of the
# text.

# %%
text = "The rain had stopped before they reached the village."
meaning = {"act": "p", "stick_breaking": "not halted yet", "exit_gate": "share that stops here"}
figure, axes = plt.subplots(
    len(kinds), 1, figsize=(8.5, 1.7 * len(kinds)), layout="constrained", squeeze=False
)
for each, (kind, model) in zip(axes[:, 0], models.items(), strict=True):
    scores = model(text).scores[:, 0]
    recursions = len(scores)
    shown = each.imshow(scores, aspect="auto", cmap="Blues", vmin=0, interpolation="none")
    each.set(xticks=range(len(text)), xticklabels=text, ylabel="recursion")
    each.set(yticks=range(recursions), yticklabels=range(1, recursions + 1))
    each.set_title(f"{kind}: {meaning[kind]}", fontsize=10)
    figure.colorbar(shown)
plt.show()

# %% [markdown]
# ## Fewer recursions, after training
#
# Each rule has a threshold that may be changed without training again. How much loss does a
# recursion less cost?

# %%
excerpt = text + (
    " Nobody had told them that the bridge was closed, and the driver would not turn back in the "
    "dark. So they walked, with the river on their left and a single lamp before them. It was past "
    "ten when the door was opened, and the old woman asked them in without a word. "
)
figure, axes = plt.subplots(figsize=(5.5, 3), layout="constrained")
for kind in kinds:
    _, field, values = CHOICES[kind]
    points = []
    for value in values[:num_points]:
        score = recursia.load(f"runs/{kind}", overrides={field: value}).score(excerpt)
        points.append((score.mean_depth, score.nats_per_token))
        print(f"{kind:15} {field}={value:<6} {points[-1][0]:.2f} recursions {points[-1][1]:.3f}")
    axes.plot(*zip(*points, strict=True), "o-", label=kind)
axes.set(xlabel="recursions per token", ylabel="nats per token")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# A curve that is flat says that the later recursions changed little: after so short a training the
# first state is nearly as good as the last.
#
# ## Convergence
#
# In recurrent depth (Huginn, Geiping et al. 2025) the number of recursions is drawn at random in
# training, and the state starts as noise. Any number works afterwards, and one can wait until the
# state of a token changes by less than a threshold.

# %%
recursia.command(f"train --config=huginn:tiny --workdir=runs/recurrent{brief}")
recurrent = recursia.load("runs/recurrent").at_depth(longest)
states = recurrent(text).states[:, 0]
size = np.linalg.norm(states[1:], axis=-1)
change = np.linalg.norm(np.diff(states, axis=0), axis=-1) / size

ids = recurrent.tokenizer.encode(excerpt)[: recurrent.context_length]
chances = np.asarray(jax.nn.log_softmax(recurrent.lens(ids)))[:, 0]
nats = -chances[:, np.arange(len(ids) - 1), ids[1:]].mean(axis=1)

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
numbers = np.arange(2, longest + 1)
ticks = range(2, longest + 1, 2)
left.semilogy(numbers, change, color="#4b93c9", alpha=0.25, linewidth=0.8)
left.semilogy(numbers, np.median(change, axis=1), color="black", label="median of the tokens")
left.axhline(0.03, color="crimson", linestyle="--", label="threshold 0.03")
left.set(xlabel="recursion", ylabel="relative change of the state", xticks=ticks)
left.legend(frameon=False)
right.plot(range(1, longest + 1), nats, "o-", markersize=3)
right.set(xlabel="read after recursion", ylabel="nats per token", xticks=ticks)
plt.show()

# %% [markdown]
# With `depth.exit=latent_diff` a token keeps its state from the recursion on in which it changed
# by less than the threshold.

# %%
waits = recursia.load("runs/recurrent", overrides={"depth.exit": "latent_diff"}).at_depth(longest)
used = waits(text).depth_used[0]
figure, axes = plt.subplots(figsize=(8.5, 1.9), layout="constrained")
axes.bar(range(len(text)), used, color="#4b93c9")
axes.set(xticks=range(len(text)), xticklabels=text, ylabel="recursions")
plt.show()
print(f"{used.mean():.2f} of {longest} recursions per token")

# %% [markdown]
# What halting saves shows when text is generated: a batch can be refilled in the middle of a token
# ([decoding](../docs/decoding.md)). In training every token is computed in every recursion.
#
# Next: [parts of your own](4_your_own.ipynb).
