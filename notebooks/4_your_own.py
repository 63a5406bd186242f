# %% [markdown]
# # Write your own parts, and put them through the laws
#
# A model is made of parts: blocks, a depth policy, a weight kind, a KV plan. Each is a small class,
# and a class of yours goes where a shipped one goes: a configuration names it by module and class.
# In a notebook the module is `__main__`. (For longer work put the class into a file:
# [extending](../docs/extending.md) has the table of base classes, and other examples.)
#
# A *law* is a statement that must hold for every model, such as that no logit depends on a later
# token. The laws find most mistakes in a new part within seconds.

# %%
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import recursia
from recursia import accounting, jsonlines, laws
from recursia.depth.policy import Aux, Policy
from recursia.feedforward.feedforward import FeedForward
from recursia.kv import Owners
from recursia.layers.initial import Init
from recursia.layers.linear import dot
from recursia.params import Spec, ones
from recursia.sharing.weights import Weights

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})

# %% tags=["parameters"] tiny="num_steps, trained = 2, trained[1:2]"
num_steps = 60  # of each training
tried = ("all four", "a mistake")  # by the laws; another part takes 20 seconds more
trained = ("as shipped", "all four", "a mistake")

# %% [markdown]
# ## A feed-forward
#
# The bilinear unit (Shazeer 2020, arXiv 2002.05202): two projections of the state are multiplied,
# without any other nonlinearity. `specs` declares the parameters, `apply` uses them, and
# `forward_flops` says what they cost.


# %%
@dataclasses.dataclass(frozen=True)
class Bilinear(FeedForward):
    """`((h left) * (h right)) down`."""

    mlp_dim: int

    norm_name = "mlp"
    slots = ("mlp",)

    def specs(self, width, num_steps):
        read, write = Init().read(width, width), Init().write(width, self.mlp_dim, num_steps)
        wide = Spec((width, self.mlp_dim), ("embed", "mlp"), read)
        down = Spec((self.mlp_dim, width), ("mlp", "embed"), write)
        return {"mlp": {"left": wide, "right": wide, "down": down}}

    def apply(self, params, x, h, context):
        left, right = (dot(h, params["mlp"][name], "d,df->f") for name in ("left", "right"))
        return dot(left * right, params["mlp"]["down"], "f,fd->d"), {}

    def forward_flops(self, width):
        return 6 * width * self.mlp_dim


# %% [markdown]
# ## A depth policy
#
# A policy runs the recursions of a stack. This one takes all of them, and lets the state follow
# each only by a share that is learned: x becomes x + s (f(x) - x).


# %%
@dataclasses.dataclass(frozen=True)
class Damped(Policy):
    """Recursions that are followed by a learned share."""

    def specs(self, schedule, embed_dim):
        return {"share": Spec((self.num_recursions,), (None,), ones, is_decayed=False)}

    def run(self, stack, params, x, context, call):
        shares = jax.nn.sigmoid(params["share"].astype(jnp.float32))

        def step(x, recursion, share):
            y, made = recursion.run(recursion.enter(x, context), context)
            x = x + share.astype(x.dtype) * (y - x)
            return x, x, made

        x, states, report, _ = stack.loop(step, x, shares)
        depth = jnp.full(x.shape[:2], self.num_recursions)
        return x, Aux({}, {"share": shares}, depth, states, report)


# %% [markdown]
# ## A weight kind
#
# A weight kind makes the weights of a step from what is shared. Here each step scales the inputs of
# the shared feed-forward matrices by a vector of its own.


# %%
@dataclasses.dataclass(frozen=True)
class Channels(Weights):
    """Shared matrices whose inputs each step scales."""

    def varies(self, block):
        return {"mlp_channels": "recursion+block"}

    def specs(self, block):
        vector = lambda spec: Spec(spec.shape[:1], (None,), ones, is_decayed=False)
        return {"mlp_channels": jax.tree.map(vector, block["mlp"])}

    def bind(self, entries):
        vectors = entries.pop("mlp_channels")
        scaled = jax.tree.map(lambda w, s: w * s[:, None], entries["mlp"], vectors)
        return {**entries, "mlp": scaled}


# %% [markdown]
# ## A KV plan
#
# A KV plan says whose keys and values a step reads. Here every second recursion reads those of the
# one before it, so that a cache holds half as many.


# %%
class Pairs(Owners):
    """Keys and values of every second recursion."""

    def owner(self, place, schedule):
        recursion, block = divmod(place, schedule.num_blocks)
        return (recursion - recursion % 2) * schedule.num_blocks + block


# %% [markdown]
# ## A mistake
#
# It is easy to write a policy that looks ahead. This one subtracts the mean of the row, which
# contains every later token. Nothing fails when it runs, and its training loss is a fine number.


# %%
@dataclasses.dataclass(frozen=True)
class Centred(Policy):
    """Recursions after which the mean of the row is subtracted: later tokens are seen."""

    def run(self, stack, params, x, context, call):
        def step(x, recursion, _):
            y, made = recursion.run(recursion.enter(x, context), context)
            y = y - y.mean(axis=1, keepdims=True)
            return y, y, made

        x, states, report, _ = stack.loop(step, x)
        depth = jnp.full(x.shape[:2], self.num_recursions)
        return x, Aux({}, {}, depth, states, report)


# %% [markdown]
# ## The models
#
# Each part goes into the same looped transformer, alone and with the other three: parts do not know
# of each other.

# %%
PARTS = {
    "feed-forward": {"block.feedforward.kind": "__main__.Bilinear"},
    "depth policy": {"depth.kind": "__main__.Damped"},
    "weight kind": {"weights.kind": "__main__.Channels"},
    "KV plan": {"kv.kv_sharing": "__main__.Pairs"},
}
PARTS["all four"] = {name: path for part in PARTS.values() for name, path in part.items()}
PARTS["a mistake"] = {"depth.kind": "__main__.Centred"}
models = {name: recursia.preset("looped:tiny", fields) for name, fields in PARTS.items()}

plain = recursia.preset("looped:tiny")
print(f"{'as shipped':14}{plain.num_params:8,} parameters")
for name, model in models.items():
    cache = accounting.cache_bytes_per_token(model.config, 128)
    print(f"{name:14}{model.num_params:8,} parameters {cache:6,.0f} cache bytes per token")

# %% [markdown]
# ## The laws
#
# `laws.check` tries each law on random parameters and tokens. `recursia laws` does the same on the
# command line.

# %%
before = jax.config.read("jax_disable_most_optimizations")
jax.config.update("jax_disable_most_optimizations", True)  # many programs, each run once or twice
verdicts = {name: list(laws.check(models[name].config)) for name in tried}
jax.config.update("jax_disable_most_optimizations", before)
names = [verdict.law for verdict in next(iter(verdicts.values()))]
figure, axes = plt.subplots(figsize=(7.5, 0.4 * len(tried) + 1.3), layout="constrained")
colors = {True: "#d9534f", False: "#8cc9a0", None: "lightgray"}
words = {True: "broken", False: "holds", None: "no case"}
for row, found in enumerate(verdicts.values()):
    for column, verdict in enumerate(found):
        is_broken = None if verdict.wrong is None else bool(verdict.wrong)
        axes.barh(row, 0.94, 0.9, left=column, color=colors[is_broken])
        axes.text(column + 0.47, row, words[is_broken], ha="center", va="center", fontsize=8)
axes.set(yticks=range(len(tried)), yticklabels=tried)
axes.set_xticks(np.arange(len(names)) + 0.47, names, rotation=30, ha="right")
axes.invert_yaxis()
plt.show()

for verdict in verdicts["a mistake"]:
    if verdict.wrong:
        print(f"{verdict.law}: {verdict.meaning}\n    but {verdict.wrong}")

# %% [markdown]
# ## Training
#
# The parts train like shipped ones. Beside them is the model that looks ahead: its loss falls too,
# and only the laws said that it cannot decode.

# %%
curves = {}
for name in trained:
    workdir = pathlib.Path("runs/own") / name.replace(" ", "_")
    fields = "".join(f" --config.{field}={value}" for field, value in PARTS.get(name, {}).items())
    recursia.command(
        f"train --config=looped:tiny --workdir={workdir} --config.train.num_steps={num_steps}"
        f" --config.schedule.warmup_steps={num_steps // 15} --config.eval.every_steps=0"
        f" --config.eval.num_batches=2 --config.eval.prompts= --config.log.every_steps=1{fields}"
    )
    rows = [row for row in jsonlines.values(workdir / "metrics.jsonl") if "loss" in row]
    curves[name] = [row["loss"] for row in rows]

# %%
figure, axes = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
width = max(1, num_steps // 15)
for name, losses in curves.items():
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    style = {"as shipped": {"color": "black"}, "a mistake": {"linestyle": "--"}}.get(name, {})
    axes.plot(np.arange(len(smooth)) + width, smooth, label=name, **style)
axes.set(xlabel="step", ylabel="nats per token, smoothed")
axes.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# What did the damped recursions learn? `load` finds the class where the run's configuration names
# it: here, as long as the notebook runs.

# %%
damped = recursia.load("runs/own/all_four")
share = 1 / (1 + np.exp(-np.asarray(damped.params["depth"]["share"])))
print("share by which each recursion is followed:", np.round(share, 3))

# %% [markdown]
# Next: [an iso-FLOP comparison](5_iso_flop.ipynb).
