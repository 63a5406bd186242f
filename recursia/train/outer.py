"""The outer optimizer: fragments leave the replicas, are averaged, and arrive (2501.18512).

`recursia.replicas` has the equations.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array

from recursia.fragments import Fragment
from recursia.params import Params
from recursia.replicas import Replicas
from recursia.sharding import Rules, splitting
from recursia.train import exchange
from recursia.train.exchange import Sent


@struct.dataclass
class Outer:
    """What training with replicas carries, besides the step and the outer parameters.

    Attributes:
      replicas: parameters of each replica, along a leading axis.
      inner: the state of each one's optimizer, as `replicas`.
      momentum: of the outer optimizer.
      flight: what has left and not arrived; None if all arrives at once.
    """

    replicas: Params
    inner: Any  # the states of optax, a tree without a type of its own
    momentum: Params
    flight: Sent | None  # of trees


@dataclasses.dataclass(frozen=True)
class Exchanges:
    """How fragments are exchanged.

    Attributes:
      how: the settings.
      fragments: of the parameters.
      mesh: the devices.
      rules: by which they shard parameters.
    """

    how: Replicas
    fragments: tuple[Fragment, ...]
    mesh: Mesh
    rules: Rules

    def wire_bytes(self, number: int) -> int:
        """Returns the bytes in which a device sends its shard of one replica's fragment."""
        part, entries = self.fragments[number], 0
        for shape, spec in zip(part.shapes, part.taken, strict=True):
            ways = (self.mesh.shape[a] for name in spec.axes for a in splitting(name, self.rules))
            entries += math.prod(shape) // math.prod(ways)
        return self.how.sent(entries, part.size[1])

    def flight(self, replicas: Params) -> Sent | None:
        """Returns what is in flight before the first step."""
        if not self.how.delay:
            return None
        # Made as it is, and not encoded from zeros, which the compiler would fold for minutes.
        shapes = jax.eval_shape(self._encoded, replicas)
        every = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
        take = lambda name: jax.tree.map(lambda each: getattr(each, name), every, is_leaf=_is_sent)
        return Sent(take("values"), take("scale") if self.how.exchange == "float4" else None)

    def left(self, number: int, params: Params, outer: Outer) -> list[Sent]:
        """Returns what every replica sends of a fragment: how far it is from the parameters."""
        part = self.fragments[number]
        apart = zip(part.take(params), part.take(outer.replicas, 1), strict=True)
        pairs = zip(apart, part.taken, strict=True)
        return [
            exchange.encoded(ours[None] - theirs, self.how.exchange, bool(spec.bank))
            for (ours, theirs), spec in pairs
        ]

    def departed(self, number: int, params: Params, outer: Outer) -> Outer:
        """Returns the state in which a fragment is in flight."""
        assert outer.flight is not None
        part, sent = self.fragments[number], self.left(number, params, outer)
        values = part.put(outer.flight.values, [each.values for each in sent], 1)
        scale = outer.flight.scale
        if scale is not None:
            scale = part.put(scale, [each.scale for each in sent], 1)
        return dataclasses.replace(outer, flight=Sent(values, scale))

    def in_flight(self, number: int, flight: Sent) -> list[Sent]:
        """Returns what every replica sent of a fragment that is in flight."""
        part = self.fragments[number]
        values = part.take(flight.values, 1)
        scales = [None] * len(values) if flight.scale is None else part.take(flight.scale, 1)
        return [Sent(*pair) for pair in zip(values, scales, strict=True)]

    def arrived(
        self, number: int, params: Params, outer: Outer, sent: list[Sent]
    ) -> tuple[Params, Outer]:
        """Returns parameters and state after a fragment is applied.

        Args:
          number: of the fragment.
          params: the outer parameters.
          outer: the state.
          sent: what every replica sent of it.
        """
        how, part = self.how, self.fragments[number]
        far = exchange.mean(sent, part, self.mesh, self.rules)
        further = lambda total, x: how.outer_momentum * total + x
        momentum = jax.tree.map(further, part.take(outer.momentum), far)
        moved = jax.tree.map(
            lambda ours, total, x: ours - how.outer_learning_rate * further(total, x),
            part.take(params),
            momentum,
            far,
        )
        mixed = jax.tree.map(self._mixed, part.take(outer.replicas, 1), moved)
        return part.put(params, moved), dataclasses.replace(
            outer,
            momentum=part.put(outer.momentum, momentum),
            replicas=part.put(outer.replicas, mixed, 1),
        )

    def _mixed(self, own: Array, outer: Array) -> Array:
        if not self.how.mix:
            return jnp.broadcast_to(outer, own.shape)
        return self.how.mix * own + (1 - self.how.mix) * outer

    def _encoded(self, replicas: Params) -> Any:
        """Returns every parameter of all replicas in the format of the exchange."""
        leaves, structure = jax.tree.flatten(replicas)
        pairs = zip(leaves, self.fragments[0].specs, strict=True)
        made = [exchange.encoded(x, self.how.exchange, bool(s.bank)) for x, s in pairs]
        return jax.tree.unflatten(structure, made)


def _is_sent(x: Any) -> bool:
    return isinstance(x, Sent)
