# %% [markdown]
# # An iso-FLOP comparison, from sweep to picture
#
# Which of two systems is better depends on what they may cost. An *iso-FLOP* comparison gives every
# model the same budget of training FLOPs: a larger model then trains for fewer steps. The loss over
# the size of the model has a valley, and the bottom of the valley is what the budget can buy
# (Hoffmann et al. 2022, arXiv 2203.15556).

# %%
import pathlib

import matplotlib.pyplot as plt
import numpy as np

import recursia
from recursia.sweep import results
from recursia.sweep.spending import steps_for

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})

# %% tags=["parameters"] tiny="budgets, widths, systems = (8e8, ), (8, 12), ('recursive', )"
budgets = (1e10, 2e10)  # training FLOPs
widths = (8, 12, 20)
systems = ("vanilla", "recursive")

# %% [markdown]
# ## Equal FLOPs are not equal steps
#
# `steps_for` says how many steps of a configuration spend a budget: training FLOPs are counted in
# closed form, forward and backward. Both systems have five layers. Those of the recursive one are a
# first block, one block three times, and a last block: it has fewer parameters, and nearly the same
# FLOPs.

# %%
BRIEF = {
    "num_layers": 5,
    "train.batch_size": 2,
    "optimizer.learning_rate": 5e-3,
    "schedule.kind": "constant",
    "schedule.warmup_steps": 10,
    "checkpoint.every_steps": 0,
    "divergence.deviations": 0,
    "eval.every_steps": 0,
    "eval.num_batches": 16,
    "eval.prompts": "",
    "log.sinks": (),
}


def model_of(width):
    """Returns the fields of a model of some width."""
    return BRIEF | {
        "block.embed_dim": width,
        "block.mixer.num_heads": 2,
        "block.mixer.num_kv_heads": 1,
        "block.mixer.head_dim": width // 2,
        "block.feedforward.mlp_dim": 3 * width,
    }


for system in systems:
    for width in widths:
        fields = model_of(width)
        steps = [steps_for(each, f"{system}:tiny", fields) for each in budgets]
        size = recursia.preset(f"{system}:tiny", fields).num_params
        print(f"{system:10} width {width:3} {size:7,} parameters, steps {steps}")

# %% [markdown]
# ## The sweep
#
# A *sweep* is a file that declares *trials*: a base configuration, the fields that differ, and
# labels. The labels `budget` and `system` tell the report what to compare.

# %%
trials = []
for system in systems:
    for each in budgets:
        for width in widths:
            fields = model_of(width)
            fields["train.num_steps"] = steps_for(each, f"{system}:tiny", fields)
            labels = {"system": system, "budget": each, "width": width}
            trials.append({"config": f"{system}:tiny", "labels": labels, **fields})

pathlib.Path("runs").mkdir(exist_ok=True)
pathlib.Path("runs/equal_flops.py").write_text(
    f'''"""Models of several widths at equal training FLOPs."""

from recursia.configs import base

TRIALS = {trials!r}


def get_config():
    return base.get_config("tiny", num_steps=300)


def sweep(add):
    for trial in TRIALS:
        add(**trial)
'''
)
print(f"{len(trials)} trials")

# %% [markdown]
# The trials run as processes, as many at a time as there are processors. The same command again
# goes on where it was stopped; with another `--runner` it sends them to a cluster.

# %%
recursia.command("sweep --config=runs/equal_flops.py --workdir=runs/equal_flops")

# %%
recursia.command("sweep results --workdir=runs/equal_flops")

# %% [markdown]
# ## The valleys
#
# One panel for each budget: loss over the number of unique parameters. Where there are three sizes,
# the curve is a parabola in the logarithm of the size. Its lowest point, if it has one between the
# sizes, is the best size at that budget.

# %%
found = [each for each in results.read(pathlib.Path("runs/equal_flops")) if each.metrics]
figure, panels = plt.subplots(
    1, len(budgets), figsize=(4 * len(budgets), 3.2), layout="constrained", sharey=True
)
for axes, each in zip(np.atleast_1d(panels), budgets, strict=True):
    for system in systems:
        here = [r for r in found if (r.labels["system"], r.labels["budget"]) == (system, each)]
        points = sorted((r.unique_parameters, r.metrics["validation_loss"]) for r in here)
        sizes, losses = map(np.array, zip(*points, strict=True))
        (drawn,) = axes.plot(sizes, losses, "o", label=system)
        if len(sizes) > 2:
            fit = np.polynomial.Polynomial.fit(np.log(sizes), losses, 2)
            along = np.linspace(np.log(sizes[0]), np.log(sizes[-1]), 50)
            axes.plot(np.exp(along), fit(along), color=drawn.get_color(), linewidth=1)
    axes.set(title=f"{each:.0e} training FLOPs", xlabel="unique parameters")
    axes.xaxis.set_major_formatter("{x:,.0f}")
np.atleast_1d(panels)[0].set_ylabel("validation loss, nats per token")
np.atleast_1d(panels)[0].legend(frameon=False)
plt.show()

# %% [markdown]
# The same trials in two other ways. Left, the lowest loss of each system over the FLOPs: what a
# budget buys. Right, the loss of every trial over its parameters: what memory buys. Sharing moves a
# model to the left in the right picture, and not in the left one.

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for system in systems:
    here = [r for r in found if r.labels["system"] == system]
    losses = [r.metrics["validation_loss"] for r in here]
    least = [
        min(loss for r, loss in zip(here, losses, strict=True) if r.labels["budget"] == each)
        for each in budgets
    ]
    panels[0].plot(budgets, least, "o-", label=system)
    panels[1].plot([r.unique_parameters for r in here], losses, "o", alpha=0.7)
panels[0].set(xlabel="training FLOPs", ylabel="validation loss, nats per token")
panels[1].set(xlabel="unique parameters")
panels[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## What may be concluded
#
# One seed, three sizes and a few hundred steps show how the comparison is made, and no more.
# `recursia sweep report` fits the parabolas with intervals, refuses fits that have too few points,
# and draws the same valleys. [Sweeps](../docs/sweeps.md) has this comparison with three systems,
# three budgets and three seeds: there the systems cannot be told apart.

# %%
if not pathlib.Path("runs/equal_flops.png").exists():
    recursia.command("sweep report --workdir=runs/equal_flops --out=runs/equal_flops.png")

# %% [markdown]
# The other question, "what would a model of equal size cost?", needs no training.

# %%
recursia.command("budget --config=vanilla:360m --versus=recursive:360m,mor:360m --match=flops")

# %% [markdown]
# Next: [a pretrained model made recursive](6_pretrained.ipynb).
