"""Serving of requests in batches whose slots are refilled, by sequence or by depth.

What a request gets does not depend on the others, nor on how slots are refilled: it is what
`decode.generate` returns for it alone.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from recursia import cache
from recursia.architecture import Model
from recursia.cache import Cache
from recursia.generate import programs, single
from recursia.generate import slots as batch
from recursia.generate.decoder import BUCKET, CHUNK
from recursia.generate.sampling import Sampling
from recursia.generate.scheduler import Discipline, Scheduler


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to continue.

    Attributes:
      prompt: ids, at least one.
      num_tokens: how many to draw at most.
      sampling: of a token from its distribution.
      key: of the draws; a token's draw depends on its place.
    """

    prompt: tuple[int, ...]
    num_tokens: int
    sampling: Sampling
    key: Array


@dataclasses.dataclass
class Served:
    """A request under way, or done.

    Attributes:
      index: of the request, in the order in which they came.
      request: as it came.
      tokens: that were drawn; the end of text is none of them.
      has_ended: whether the end of text was drawn.
      recursions: of all tokens that were read one by one, those of stopped tokens included.
      start: the first token of the text that the context holds.
    """

    index: int
    request: Request
    tokens: list[int] = dataclasses.field(default_factory=list)
    has_ended: bool = False
    recursions: int = 0
    start: int = 0

    @property
    def mean_recursions(self) -> float | None:
        """Recursions per token that was read; the first one is drawn from the prompt alone."""
        read = len(self.tokens) - 1 + self.has_ended
        return self.recursions / read if read > 0 else None

    @property
    def context(self) -> list[int]:
        """The tokens that the context holds."""
        return [*self.request.prompt, *self.tokens][self.start :]


class Engine:
    """A model that serves requests in slots.

    Attributes:
      ticks: recursions of the whole batch so far.
    """

    def __init__(
        self,
        params: dict[str, Any],
        config: Model,
        *,
        num_slots: int,
        window: int,
        end_of_text: int,
        discipline: Discipline,
    ):
        """Lays out parameters and caches.

        Args:
          params: float32 parameters.
          config: the model.
          num_slots: rows of the batch.
          window: tokens that the model's context holds.
          end_of_text: the id that ends a text.
          discipline: how slots are refilled.

        Raises:
          ValueError: if slots cannot serve the model.
        """
        if why := batch.refusal(config):
            raise ValueError(why)
        self.ticks = 0
        self._config, self._window, self._end = config, window, end_of_text
        self._params = jax.jit(single.unstack, static_argnames="config")(params, config)
        self._programs = programs.compiled(config)
        self._scheduler = Scheduler(num_slots, config.schedule.num_recursions, discipline)
        self._runs_on = config.owes_keys and discipline != "depth"
        catches_up = config.owes_keys and discipline == "depth"
        self._slots = batch.empty(self._params, config, num_slots, window, catches_up)
        self._held: dict[int, Served] = {}
        self._is_over: Callable[[Served], bool] = lambda served: False

    def serve(
        self,
        requests: Iterable[Request],
        is_over: Callable[[Served], bool] = lambda served: False,
    ) -> Iterator[Served]:
        """Yields requests as they end, first come, first served.

        Args:
          requests: texts to continue.
          is_over: asked after each token of a request, whether it ends there.

        Raises:
          ValueError: for a prompt that is empty or longer than the context.
        """
        self._is_over = is_over
        queue = collections.deque(Served(i, request) for i, request in enumerate(requests))
        while queue or not self._scheduler.is_idle:
            yield from self._refill(queue)
            if not self._scheduler.is_idle:
                yield from self._tick()

    def _refill(self, queue: collections.deque[Served]) -> Iterator[Served]:
        for slot in self._scheduler.free:
            while queue:
                served = queue.popleft()
                if not self._begins(slot, served):
                    yield served
                    continue
                self._held[slot] = served
                self._scheduler.take([slot])
                break

    def _tick(self) -> Iterator[Served]:
        """Makes one recursion of the batch; yields the requests that end after it."""
        running = self._scheduler.taken if self._runs_on else self._scheduler.running
        self._slots, goes_on = self._programs.recur(self._params, self._slots, running)
        self.ticks += 1
        for slot in np.flatnonzero(running).tolist():
            self._held[slot].recursions += 1
        left = self._scheduler.advance(jax.device_get(goes_on))
        by_sampling = collections.defaultdict(list)
        for slot in left:
            by_sampling[self._held[slot].request.sampling].append(slot)
        for sampling, rows in by_sampling.items():
            turn, width = self._programs.turn(sampling), 1 << (len(rows) - 1).bit_length()
            padded = np.full(width, len(running), np.int32)
            padded[: len(rows)] = rows
            self._slots, drawn = turn(self._params, self._slots, padded)
            for slot, token in zip(rows, jax.device_get(drawn).tolist(), strict=False):
                if not self._goes_on(slot, self._held[slot], token):
                    self._scheduler.release(slot)
                    yield self._held.pop(slot)

    def _goes_on(self, slot: int, served: Served, token: int) -> bool:
        """Takes a token that was drawn; returns whether the request goes on."""
        served.has_ended = token == self._end
        if served.has_ended:
            return False
        served.tokens.append(token)
        if self._is_over(served) or len(served.tokens) == served.request.num_tokens:
            return False
        if len(served.context) <= self._window:
            return True
        served.start += len(served.context) - max(self._window // 2, 1)
        return self._begins(slot, served)

    def _begins(self, slot: int, served: Served) -> bool:
        """Reads a request's context into a slot; returns whether the token drawn goes on."""
        text = served.context
        if not 0 < len(text) <= self._window:
            raise ValueError(f"prompt: has {len(text)} tokens, takes 1 to {self._window}")
        hidden, held = self._read(text)
        install = self._programs.install(served.request.sampling)
        prompt = hidden, held, jnp.int32(len(text))
        row, key = jnp.int32(slot), served.request.key
        self._slots, token = install(self._params, self._slots, row, prompt, key)
        return self._goes_on(slot, served, int(token[0]))

    def _read(self, text: list[int]) -> tuple[Array, Cache]:
        """Returns the last states of a text, and its KV caches."""
        tokens = np.zeros((1, -(-len(text) // BUCKET) * BUCKET), np.int32)
        tokens[0, : len(text)] = text
        held = cache.empty(self._config, 1, self._window)
        places = {(n, o): self._window for n, pasts in held.pasts.items() for o in pasts}
        held, hidden = cache.resized(held, places), None
        for first in range(0, len(text), CHUNK):
            chunk = tokens[:, first : first + CHUNK]
            given = chunk, held, np.int32(first), np.int32(len(text))
            hidden, held = self._programs.read(self._params, *given)
        assert hidden is not None
        return hidden, held
