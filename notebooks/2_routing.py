# %% [markdown]
# # Routing: tokens that choose their depth
#
# In Mixture-of-Recursions (Bae et al. 2025, arXiv 2507.10524) a small *router* looks at every token
# before each recursion and gives it a score. The tokens with the highest scores go on; the others
# stop, and keep the state that they have. This notebook watches a trained model do it.

# %%
import gzip
import json
import pathlib
from importlib import resources

import jax
import matplotlib.pyplot as plt
import numpy as np

import recursia

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})

# %% tags=["parameters"] tiny="num_steps, kept = 2, (0.5, )"
run = ""  # a run of yours; empty takes that of `make demo`, or trains a small one here
num_steps = 300  # of that training, which takes a minute on two free cores
kept = (0.02, 1 / 6, 1 / 3, 2 / 3, 1.0)  # capacities of the later recursions, at the end

# %% [markdown]
# ## A trained model
#
# `make demo` leaves a model in `runs/demo`. If it is there we take it, and otherwise train a
# smaller one on the bundled novels. A token is a byte.

# %%
demo = [str(path) for path in map(pathlib.Path, ("runs/demo", "../runs/demo")) if path.is_dir()]
if not run and demo:
    run = demo[0]
if not run:
    run = "runs/routing"
    recursia.command(
        f"train --config=mor:tiny --workdir={run} --config.train.num_steps={num_steps}"
        f" --config.schedule.warmup_steps={num_steps // 15} --config.eval.every_steps=0"
        " --config.eval.num_batches=2 --config.eval.prompts="
    )
model = recursia.load(run)
print(model)

# %% [markdown]
# ## Which tokens go deeper
#
# In *expert choice* each recursion keeps a fixed part of the tokens of a row, its *capacity*: all
# in the first recursion, two thirds in the second and one third in the third. Here is a text that
# the model has not seen, coloured by the recursions that each byte took.

# %%
text = (
    "The rain had stopped before they reached the village. 'Is anyone at home?' asked Mary, "
    "and knocked. Nobody answered."
)
out = model(text)
depth = out.depth_used[0]
print(out)


def show(text, values, colors, title, columns=38):
    """Draws a text, each character on the colour of its value."""
    rows = -(-len(text) // columns)
    _, axes = plt.subplots(figsize=(8, 0.34 * rows + 0.5), layout="constrained")
    for place, (letter, value) in enumerate(zip(text, values, strict=True)):
        row, column = divmod(place, columns)
        axes.add_patch(plt.Rectangle((column, row), 1, 1, color=colors(value)))
        axes.text(column + 0.5, row + 0.55, letter, ha="center", va="center", family="monospace")
    axes.set(xlim=(0, columns), ylim=(rows, 0), title=title)
    axes.axis("off")
    plt.show()


shades = ("#f3f3f3", "#a6cbe8", "#4b93c9")
show(text, depth, lambda taken: shades[taken - 1], "one, two or three recursions: the darker")

# %% [markdown]
# Compare it with the *surprise*: how many nats the model pays for each byte, given those before it.

# %%
surprise = np.concatenate([[0], out.nats[0, :-1]])  # of a byte is known at the byte before
show(text, surprise, lambda nats: plt.cm.Oranges(min(nats / 6, 1) * 0.8), "the darker, the dearer")

# %% [markdown]
# ## Does depth go where the text is hard?
#
# One sentence proves little. We read 16 passages and group bytes by what they are.

# %%
packed = resources.files("recursia.corpus").joinpath("validation.jsonl.gz").read_bytes()
novel = json.loads(gzip.decompress(packed).split(b"\n")[0])["text"]
length = min(model.context_length, 128)
passages = [novel[start : start + length] for start in range(5000, 5000 + 16 * 4000, 4000)]
ids = [model.tokenizer.encode(passage)[:length] for passage in passages]
read = model(ids)
kinds = {
    "space": lambda now, before: now == " ",
    "first letter": lambda now, before: now.isalpha() and before == " ",
    "later letter": lambda now, before: now.isalpha() and before.isalpha(),
    "other": lambda now, before: not now.isalpha() and now != " ",
}
found = {kind: [] for kind in kinds}
for row, tokens in enumerate(ids):
    letters = "".join(chr(token) if token < 128 else "?" for token in tokens)
    for place in range(1, len(tokens) - 1):
        for kind, is_kind in kinds.items():
            if is_kind(letters[place], letters[place - 1]):
                found[kind].append((read.depth_used[row, place], read.nats[row, place]))

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.7), layout="constrained")
means = {kind: np.mean(pairs, axis=0) for kind, pairs in found.items()}
left.barh(list(means), [mean[0] for mean in means.values()], color="#4b93c9")
left.set(xlabel="mean recursions", xlim=(0, model.num_recursions))
right.barh(list(means), [mean[1] for mean in means.values()], color="#e8903f")
right.set(xlabel="nats for the byte that follows")
for each in (left, right):
    each.invert_yaxis()
plt.show()

# %% [markdown]
# ## The router's scores
#
# The router's number for a token is a *logit*. In training the best of the row are kept, and an
# auxiliary loss teaches the router to give them logits above 0, so that a token can decide by
# itself: when text is generated, later tokens are not there to be compared with.

# %%
figure, axes = plt.subplots(
    1, model.num_recursions, figsize=(8, 2.5), layout="constrained", sharey=True
)
for recursion, each in enumerate(axes):
    score, taken = read.scores[recursion], read.is_taken[recursion]
    is_scored = read.is_token & ~np.isnan(score)
    bins = np.linspace(*np.quantile(score[is_scored], (0.002, 0.998)), 40)
    each.hist(score[is_scored & ~taken], bins, color="lightgray", label="stops")
    each.hist(score[is_scored & taken], bins, color="#4b93c9", alpha=0.75, label="goes on")
    each.axvline(0, color="black", linewidth=0.8)
    each.set(title=f"recursion {recursion + 1}", xlabel="logit")
axes[-1].legend(frameon=False)
plt.show()

# %% [markdown]
# Mode `causal` decides by the sign of the logit alone. How often do both ways agree, and what does
# the difference cost?

# %%
causal = model(ids, mode="causal")
agree = (causal.is_taken == read.is_taken)[:, read.is_token].mean(axis=1)
print("agreement per recursion:", ", ".join(f"{part:.1%}" for part in agree))
for name, each in (("eval", read), ("causal", causal)):
    nats = each.nats.sum() / each.is_token[:, 1:].sum()
    print(f"{name:7} {nats:.4f} nats per token at {each.mean_depth:.3f} recursions per token")

# %% [markdown]
# ## What a recursion is worth
#
# Read the state after each recursion through the head, as if it were the last (the *logit lens*).
# Tokens that stop keep their state, so the last curve is the model's own loss.

# %%
chances = np.asarray(jax.nn.log_softmax(model.lens(ids)))
index = read.tokens[None, :, 1:, None]
nats = -np.take_along_axis(chances[:, :, :-1], index, axis=-1)[..., 0]
figure, axes = plt.subplots(figsize=(6.5, 2.8), layout="constrained")
for depth in range(1, model.num_recursions + 1):
    is_here = (read.depth_used[:, :-1] == depth) & read.is_token[:, 1:]
    curve = nats[:, is_here].mean(axis=1)
    axes.plot(range(1, len(curve) + 1), curve, "o-", label=f"tokens that take {depth}")
axes.set(xlabel="read after recursion", ylabel="nats per token", xticks=range(1, len(chances) + 1))
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Turn the capacity
#
# The capacity can be changed after training. Fewer tokens in the later recursions cost less, and
# the loss says what they were worth.

# %%
excerpt = "".join(passages)
points = []
for part in kept:
    capacity = (1, *(part,) * (model.num_recursions - 1))
    score = recursia.load(run, overrides={"depth.capacity": capacity}).score(excerpt)
    points.append((score.mean_depth, score.nats_per_token))
    print(f"{score.mean_depth:.2f} recursions per token: {score.nats_per_token:.4f} nats per token")
figure, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
depths, losses = np.array(points).T
axes.plot(depths, losses, "o-")
axes.set(xlabel="recursions per token", ylabel="nats per token")
axes.set_ylim(losses.min() - 0.05, losses.max() + 0.05)  # a finer scale would show noise
plt.show()

# %% [markdown]
# At this size and after so short a training the differences are small; the
# [report](../docs/report.md) of a longer run shows the same pictures of that run
# (`recursia report --workdir=runs/demo`).
#
# Next: [tokens that halt](3_halting.ipynb).
