r"""Which layer makes the keys that others read, with a half and a quarter of the KV cache.

  recursia sweep --config=sweeps/condensed_keys:tiny --workdir=sweeps/condensed_keys   # 21 trials
  recursia sweep report --workdir=sweeps/condensed_keys

Of eight layers the first 3 (or 1) make keys of their own, and one of the others makes keys for all
of these: the lowest, the middle or the top one, "pizza" in Wu et al. 2024 (arXiv 2410.14442). All
trials have the training FLOPs of the same budget: where keys come from a later layer, the layers
run nine times in a step, and there are so many fewer steps.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from recursia import sweep as grids
from recursia.configs import lckv
from recursia.configs.sweeps import axes

PRESETS = ("tiny",)
LAYERS = 8
PLACES = {"bottom": 0.0, "middle": 0.5, "top": 1.0}
OWN = {"half": 3, "quarter": 1}  # layers that make their own keys, by the size of the cache


def get_config(preset: str) -> ConfigDict:
    return lckv.get_config(preset)


def table(own: int, place: float) -> tuple[tuple[int, ...]]:
    """Returns the layer whose keys each layer reads."""
    maker = own + int(place * (LAYERS - 1 - own))
    return ((*range(own), *[maker] * (LAYERS - own)),)


def sweep(add: Callable[..., None], preset: str) -> None:
    models = [{"kv.kv_sharing": "own", "labels": {"cache": "whole", "maker": "own"}}]
    models += [
        {"kv.kv_sharing": table(own, place), "labels": {"cache": cache, "maker": maker}}
        for cache, own in OWN.items()
        for maker, place in PLACES.items()
    ]
    common = {"config": f"lckv:{preset}", **axes.BRIEF, "train.batch_size": 4}
    for trial in grids.product(models, [common], axes.seeds(3)):
        add(**axes.spending(axes.TINY, trial, axes.WARMUP[preset]))
