"""KV cache of a model for decoding: one `Past` for each step that makes keys or values.

`unstack` turns parameters into what decoding reads: each bank entry an array of its own, in the
compute dtype. `empty` makes the cache of a batch of texts; `model.extend` adds tokens to it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array

from recursia import params as parameters
from recursia.architecture import Model
from recursia.layers import past
from recursia.layers.attention import Context, KeysValues
from recursia.layers.past import Past
from recursia.mixers.mixer import Mixer
from recursia.params import Leaf
from recursia.sharing import key_banks
from recursia.sharing.pending import Pending
from recursia.sharing.schedule import Schedule
from recursia.stacks import CORE, EMBED, schedules


@struct.dataclass
class Cache:
    """The KV caches of a batch of texts.

    Attributes:
      pasts: by the stack's name ("prelude", "core", "coda"; "embed" of an embedding that attends)
        and the place of a step in its walk.
      pending: tokens that stopped early, whose later keys wait until another token asks for them;
        None before the first token, and under policies where no token ever does.
      num_blocks: blocks applied so far, to all rows at once.
    """

    pasts: dict[str, dict[int, Past]]
    pending: Pending | None
    num_blocks: Leaf  # []

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        held = [each.keys_values for pasts in self.pasts.values() for each in pasts.values()]
        return sum(leaf.nbytes for leaf in jax.tree.leaves(held))

    def check(self, config: Model) -> None:
        """Refuses a model whose steps are not those that filled the caches.

        The keys of a model at another depth belong to other steps: no cache can be read at two.

        Raises:
          ValueError: with both numbers.
        """
        for name, plan in schedules(config).items():
            held, made = set(self.pasts.get(name, {})), set(plan.cached_places)
            if held != made:
                raise ValueError(
                    f"cache: {name} has keys of {len(held)} steps, and the model makes keys in "
                    f"{len(made)}; give the text again at this depth"
                )


def unstack(params: dict[str, Any], config: Model) -> dict[str, Any]:
    """Returns parameters for decoding: bank entries apart, in the compute dtype.

    Banks of which a step uses several entries stay stacked.

    Args:
      params: float32, with the entries of a bank stacked.
      config: the model.
    """

    def entries(name: str, slot: str, tree: Any) -> dict[str, Any]:
        block = config.block if name == CORE else config.end_block
        is_exact = slot in (*block.exact, *config.weights.exact)
        dtype = jnp.float32 if is_exact else config.dtype
        banks = {slot: tree}
        if name == CORE:
            banks = key_banks.split(slot, tree, config.key_weights)
        whole = lambda bank: jax.tree.map(lambda leaf: leaf.astype(dtype), bank)
        leaves = lambda bank: jax.tree.leaves(bank, is_leaf=parameters.is_apart)
        count = lambda bank: len(leaves(bank)[0]) if leaves(bank) else 1
        apart = lambda bank: tuple(whole(parameters.at(bank, i)) for i in range(count(bank)))
        is_several = lambda bank: schedules(config)[name].entry(bank).ndim > 1
        return {n: whole(bank) if is_several(n) else apart(bank) for n, bank in banks.items()}

    def stack(name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for slot, tree in params[name].items():
            found |= entries(name, slot, tree)
        return found

    return {**params, **{name: stack(name) for name in schedules(config)}}


def empty(config: Model, batch: int, size: int) -> Cache:
    """Returns the cache of texts without a token, a row for each parallel copy of the model.

    Args:
      config: the model.
      batch: texts.
      size: tokens of the longest; a step that routes needs fewer places (`Policy.cache_places`).
    """
    examples: dict[Any, KeysValues] = {}

    def example(name: str, plan: Schedule, place: int) -> KeysValues:
        block = config.step_blocks[plan.steps[place]] if name == CORE else config.end_block
        if block not in examples:
            examples[block] = _example(block.mixer, block.embed_dim, config.dtype)
        makes_keys = plan.owner_places[place] == place
        return examples[block] if makes_keys else dataclasses.replace(examples[block], key=None)

    rows = batch * config.parallel.num_copies
    pasts = {
        name: {
            place: past.empty(
                example(name, plan, place), rows, _places(config, name, plan, place, size)
            )
            for place in plan.cached_places
        }
        for name, plan in schedules(config).items()
    }
    if (mixer := config.embed.attention) is not None:
        width = config.embed.row_width(config.end_block.embed_dim)
        pasts[EMBED] = {0: past.empty(_example(mixer, width, config.dtype), batch, size)}
    return Cache(pasts, None, jnp.zeros((), jnp.int32))


def resized(held: Cache, places: dict[tuple[str, int], int]) -> Cache:
    """Returns the cache with other numbers of places for some steps.

    Args:
      held: the cache.
      places: by the name of the stack and the place of the step in its walk.
    """
    pasts = {name: dict(each) for name, each in held.pasts.items()}
    for (name, owner), size in places.items():
        pasts[name][owner] = pasts[name][owner].resized(size)
    return Cache(pasts, held.pending, held.num_blocks)


def _places(config: Model, name: str, plan: Schedule, owner: int, size: int) -> int:
    if name != CORE:
        return size
    recursion = int(plan.steps[owner]) // plan.num_blocks
    return config.depth.cache_places(plan, recursion, size)


def _example(mixer: Mixer, width: int, dtype: DTypeLike) -> KeysValues:
    """Returns the shapes of the keys and values that a step makes of one token."""
    x = jax.ShapeDtypeStruct((1, 1, width), dtype)
    where = Context(jnp.zeros((1, 1), jnp.int32))
    shapes = parameters.abstract(mixer.specs(width, 1))
    cast = lambda slot, tree: jax.tree.map(
        lambda leaf: leaf.update(dtype=jnp.float32 if slot in mixer.exact else dtype), tree
    )
    shapes = {slot: cast(slot, tree) for slot, tree in shapes.items()}

    def made(weights: Any, x: Array) -> KeysValues:
        return mixer.keys_values(weights, x, x, where)[0]

    return jax.eval_shape(made, shapes, x)
