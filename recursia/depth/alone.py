"""Causal routing: each token decides alone whether it takes the next recursion.

The decision on a recursion comes before it, so that a recursion that no wanted token takes costs
nothing. A token that does not take one takes none after it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from recursia.depth.policy import Aux, Call, Result
from recursia.layers.attention import Context
from recursia.layers.branch import States
from recursia.params import at
from recursia.sharing.recursion import Recursion, RecursionOutput
from recursia.sharing.stack import Stack

Decide = Callable[[Array, Any], tuple[Array, Array]]  # from states and an entry: takes it, and gate


def run(
    stack: Stack,
    x: States,
    context: Context,
    call: Call,
    entries: Any,
    decide: Decide,
    update: Callable[[Array, Array, Array], Array],
) -> Result:
    """Returns the states after each token's own number of recursions.

    Args:
      stack: the core.
      x: hidden states that enter it.
      context: positions, documents and padding of the tokens.
      call: the tokens that are wanted.
      entries: of the router, one for each recursion.
      decide: from states and an entry, whether a token takes that recursion, and its gate.
      update: from states before and after a recursion and gates, a token's new states.
    """
    live = jnp.ones(x.shape[:2], bool) if context.is_live is None else context.is_live
    following = jax.tree.map(lambda leaf: jnp.roll(jnp.asarray(leaf), -1, axis=0), entries)
    goes, gate = decide(x, at(entries, 0))

    def body(
        carry: tuple[Array, ...], recursion: Recursion, entry: Any
    ) -> tuple[tuple[Array, ...], None, RecursionOutput]:
        x, active, chosen, gate, depth = carry
        visible = recursion.only(context, chosen, active)
        y, output = recursion.run(recursion.enter(x, visible), visible)
        x = jnp.where(chosen[..., None], update(x, y, gate), x)
        goes, gate = decide(x, entry)
        return (x, chosen, chosen & goes, gate, depth + chosen), None, output

    start = (x, live, live & goes, gate, jnp.zeros(x.shape[:2], jnp.int32))
    goes_on = lambda carry: call.wants_any(carry[2])
    x, *_, depth = stack.loop_while(body, start, following, goes_on)
    return x, Aux({}, {}, depth, None)
