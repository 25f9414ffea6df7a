"""What an engine is to those that ask it, whichever one it is: the real one, one in another process, or a fake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from shardwise.engine.incident import Incident
from shardwise.engine.profile import Bounds, Told, Traces
from shardwise.engine.reshard import TellSetup
from shardwise.engine.setup import Setup
from shardwise.engine.status import Status
from shardwise.sched.events import Event
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import SamplingParams
from shardwise.sched.written import Written


class TokenEngine(Protocol):
    """What runs requests of ids. Its methods may be called on any thread."""

    @property
    def setup(self) -> Setup: ...

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | PoolingParams,
        sink: Callable[[Event], None],
        *,
        ends: Sequence[int] = (),
        bad: Sequence[Sequence[int]] = (),
        priority: int = 0,
        tenant: str = "",
        timeout_s: float | None = None,
        key: str = "",
    ) -> int: ...

    def abort(self, request: int) -> None: ...

    def finish(self, request: int, choice: int) -> None: ...

    def close(self) -> None: ...

    @property
    def mending(self) -> Incident | None:
        """The loss for which nothing is computed now; None while the ranks are whole."""
        ...

    @property
    def incidents(self) -> tuple[Incident, ...]:
        """The last losses that were mended, in order."""
        ...

    @property
    def lost(self) -> str | None:
        """Why it takes no requests any more; None while it does."""
        ...


class HostedEngine(TokenEngine, Protocol):
    """What a desk serves to fronts in other processes. `turned` is called after all events of a step, `changed` when ranks were
    lost or go on."""

    turned: Callable[[], None]
    changed: Callable[[], None]

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams | PoolingParams,
        sink: Callable[[Event], None],
        *,
        ends: Sequence[int] = (),
        bad: Sequence[Sequence[int]] = (),
        priority: int = 0,
        tenant: str = "",
        timeout_s: float | None = None,
        key: str = "",
        written: Written | None = None,
        began: Callable[[int, int], None] | None = None,
    ) -> int:
        """As `TokenEngine.submit`; a request that an engine before this one had taken in goes on after what is `written`.
        `began` is called, as the sink is, with what `Ended` will say of its `prefilled` and `cached` once it runs."""
        ...

    def knock(self, key: str, tokens: int) -> None:
        """QueueFull where a request of about so many prompt tokens, which is known by `key`, would not be taken in now."""
        ...

    def gather(self, told: Callable[[Status | None], None]) -> None:
        """Has `told` called with its status, or with None where it has ended."""
        ...

    def record(self, bounds: Bounds | None, told: Told) -> None:
        """Has what the ranks do recorded from now on; without bounds, ends that and has `told` called with the files."""
        ...

    def reshard(self, shares: tuple[float, ...], told: TellSetup) -> None:
        """Has the model cut by other shares, one a rank; `told` is called on the engine's thread once it is served so, and
        `setup` is that. With a Conflict while the ranks are being formed already; with a UserError, which says what would
        work, where it cannot be; with the cause where the engine has ended. Open requests go on."""
        ...


class ServingEngine(TokenEngine, Protocol):
    """What a server asks: an engine that may be elsewhere, may be full, and may be lost. Its coroutines run on any event loop,
    a remote one's on its own."""

    @property
    def away(self) -> str | None:
        """Why nothing is computed for the moment, though it will be; None while that is not so. Requests wait meanwhile."""
        ...

    async def room(self, key: str, tokens: int) -> None:
        """QueueFull where it is known already that a request of about so many prompt tokens, which is known by `key`, would not
        be taken in: to be asked before a prompt is read. That it returns promises nothing."""
        ...

    async def admitted(self, request: int) -> None:
        """Returns once a submitted request was taken in. QueueFull, RequestError or Unavailable where it was not: to be told
        here, it must be awaited at once after `submit`, which may itself raise what is known by then. Where nobody waits, the
        request's sink gets an `Ended` with the same words."""
        ...

    async def status(self) -> Status:
        """What it is doing. Unavailable where it is gone."""
        ...

    async def recut(self, shares: tuple[float, ...]) -> None:
        """Has the model cut by other shares, one a rank: returns once it is served so, and `setup` is that. Conflict while the
        ranks are being formed already; UserError, which says what would work, where it cannot be; Unavailable where the engine
        is gone."""
        ...

    async def profile(self, bounds: Bounds | None) -> Traces:
        """Has what the ranks do recorded from now on; without bounds, ends that: the files. Conflict where it is recorded
        already, or is not; Unavailable where the engine is gone."""
        ...
