"""A prompt becomes one vector: the pooled hidden states that an engine gives, averaged, cut short and normalised.

Knows no tokenizer and no HTTP; it is to embeddings what `Transcript` is to text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from shardwise.engine.complete import Prompt
from shardwise.engine.contract import TokenEngine
from shardwise.engine.outputs import EmbeddingOutput, EmbeddingRequestOutput
from shardwise.errors import ShardwiseError, Unavailable
from shardwise.sched.checks import whole
from shardwise.sched.events import Ended, Event, Pooled
from shardwise.sched.pooling import PoolingParams, floats, packed

TINY = 1e-12
"""A vector that is shorter has no direction, and is left as it is. (torch's `functional.normalize` has the same number.)"""


class Pooling:
    """A request under way whose vector is wanted: `feed` it its events, on any one thread."""

    tokens = 0
    """Nothing is generated."""

    def __init__(self, core: TokenEngine, number: int, prompt: Prompt, request_id: str) -> None:
        self.number, self.prompt, self.request_id = number, prompt, request_id
        self._core = core
        self._pooled: Pooled | None = None
        self._end: Ended | None = None

    def feed(self, event: Event) -> None:
        """Takes one event."""
        if isinstance(event, Pooled):
            self._pooled = event
        elif isinstance(event, Ended):
            self._end = event

    @property
    def ended(self) -> bool:
        return self._end is not None

    def check(self, name: str | None = None) -> None:
        """ShardwiseError where it has failed, or was aborted, Unavailable where there is no room for it any more; `name` says
        which it was."""
        if self._end is None or (self._end.error is None and self._pooled is not None):
            return
        reason = self._end.error or "it was aborted"
        kind = Unavailable if self._end.unfit else ShardwiseError
        raise kind(reason if name is None else f"{name} failed: {reason}")

    def abort(self) -> None:
        """Ends it in the engine, if it has not ended; any thread, any time."""
        self._core.abort(self.number)

    def output(self, *, normalize: bool = True, dimensions: int | None = None) -> EmbeddingRequestOutput:
        """The vector of one that has ended well: see `embedding`."""
        self.check()
        assert self._pooled is not None and self._end is not None, f"request {self.number} has not ended"
        vector = embedding(self._pooled, normalize=normalize, dimensions=dimensions)
        return EmbeddingRequestOutput(self.request_id, EmbeddingOutput(vector), list(self.prompt.ids), self._end.cached)


def start_pooling(
    core: TokenEngine,
    prompt: Prompt,
    params: PoolingParams,
    sink: Callable[[Event], None],
    *,
    priority: int = 0,
    request_id: str | None = None,
    key: str = "",
) -> Pooling:
    """Hands a prompt to the engine. `sink` gets its events on the engine's thread; `Pooling.feed` is to get them next. `key` is
    what it is known by when it comes again.

    RequestError where it can never run, ShardwiseError where the engine is closed.
    """
    number = core.submit(prompt.ids, params, sink, priority=priority, tenant=prompt.tenant, key=key)
    return Pooling(core, number, prompt, str(number) if request_id is None else request_id)


def embedding(pooled: Pooled, *, normalize: bool = True, dimensions: int | None = None) -> list[float]:
    """The first `dimensions` numbers of the mean, of length 1 where `normalize`; each is a float32."""
    return shortened([number / pooled.count for number in floats(pooled.vector)], normalize=normalize, dimensions=dimensions)


def shortened(vector: Sequence[float], *, normalize: bool, dimensions: int | None = None) -> list[float]:
    """The first `dimensions` numbers of a vector, then, where `normalize`, divided by their length; each is a float32."""
    numbers = list(vector[:dimensions])
    if normalize and (length := math.hypot(*numbers)) > TINY:
        numbers = [number / length for number in numbers]
    return list(floats(packed(numbers)))


def check_dimensions(dimensions: int | None, hidden: int) -> None:
    """RequestError where a model whose vectors have `hidden` numbers cannot give so many."""
    if dimensions is not None:
        whole("dimensions", dimensions, 1, hidden)
