"""What a front and the engine's process say to each other: typed messages, msgpack, length first, tokens in and tokens out.

Nothing is ever pickled; it opens no sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import msgspec

from shardwise.engine.boot import Boot as Boot
from shardwise.engine.incident import Incident
from shardwise.engine.profile import Bounds, Traces
from shardwise.engine.setup import Setup
from shardwise.engine.status import Status
from shardwise.errors import Conflict, RequestError, ShardwiseError, Unavailable, UserError
from shardwise.runtime import wire
from shardwise.sched import events as told
from shardwise.sched.events import Finish
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import MOST, SamplingParams
from shardwise.sched.step import Chosen
from shardwise.sched.written import Written

MOST_RANKS = 4096
"""The most ranks that may be asked for: a front is not to fill the engine's memory."""

LIMIT_BYTES = 64 * 2**20
"""The longest frame that either side accepts: a million token ids take five."""

Id = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Words = tuple[tuple[Id, ...], ...]


def pack_setup(setup: Setup) -> bytes:
    """A setup as bytes, for a front in another process."""
    return _ENCODER.encode(Boot.of(setup))


def unpack_setup(body: bytes) -> Setup:
    """The setup in bytes of `pack_setup`; BridgeError for others."""
    message = decode(body)
    if not isinstance(message, Boot):
        raise BridgeError(f"a {type(message).__name__} message where a Boot was expected")
    return message.setup()


# --- from a front -----------------------------------------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A request, by a number that the front chose. Answered by Admitted or Refused; its events may come before Admitted.

    One of `sampling` and `pooling` is given. `again`: an engine that is gone had taken it in, and given it what `written`,
    `finished`, `scored` and `began` say, as in `Written`.
    """

    number: Number
    prompt: tuple[Id, ...]
    sampling: SamplingParams | None = None
    pooling: PoolingParams | None = None
    ends: tuple[Id, ...] = ()
    bad: Words = ()
    priority: Annotated[int, msgspec.Meta(ge=-MOST, le=MOST)] = 0
    tenant: str = ""
    timeout_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    key: str = ""
    again: bool = False
    written: Words = ()
    finished: tuple[Id, ...] = ()
    scored: Number = 0
    began: tuple[Number, Number] | None = None

    @property
    def before(self) -> Written | None:
        """What an engine that is gone has given it; None where there was none."""
        return Written(self.written, self.finished, self.scored, self.began) if self.again else None

    @property
    def params(self) -> SamplingParams | PoolingParams:
        """What is wanted of the prompt. RequestError where it does not say."""
        found = self.pooling if self.sampling is None else self.sampling
        if found is None:
            raise RequestError("the request says neither how to continue its prompt nor how to pool it")
        return found


class Knock(msgspec.Struct, frozen=True, tag=True):
    """Whether there is room for a request that is known by `key`. Answered by Admitted or Refused; nothing is taken in."""

    number: Number
    key: str
    tokens: Number


class Abort(msgspec.Struct, frozen=True, tag=True):
    """A request is not wanted any more."""

    number: Number


class FinishChoice(msgspec.Struct, frozen=True, tag=True):
    """One choice of a request is complete."""

    number: Number
    choice: Id


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Its status is wanted. Answered by Answer with the same number."""

    number: Number


class Reshard(msgspec.Struct, frozen=True, tag=True):
    """The model is to be cut by other shares, one a rank. Answered by Resharded with the same number."""

    number: Number
    shares: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=MOST_RANKS)]


class Profile(msgspec.Struct, frozen=True, tag=True):
    """The ranks are to record what they do; without bounds, to end that. Answered by Profiled with the same number."""

    number: Number
    bounds: Bounds | None


# --- to a front -------------------------------------------------------------------------------------------------------


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """The request runs, or waits to. To a Knock: there is room."""

    number: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The request was not taken in: it can never run, too many wait (`retry_after_s` says when to come again), or the engine
    is going."""

    number: int
    kind: Literal["request", "full", "gone"]
    message: str
    retry_after_s: int = 0


class Token(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """An `Emitted` without figures: nearly all events are."""

    request: int
    choice: int
    token: int
    finish: Finish | None


class Figured(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """An `Emitted` with its log-probabilities."""

    request: int
    choice: int
    chosen: Chosen
    finish: Finish | None


class Scored(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """As its namesake."""

    request: int
    scores: tuple[Chosen, ...]


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """As its namesake."""

    request: int
    error: str | None
    prefilled: int
    cached: int
    preempted: int
    asked: bool
    unfit: bool = False


class Pooled(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """As its namesake."""

    request: int
    vector: bytes
    count: int


class Began(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """It runs: what its `Ended` will say of its prompt. For the front alone, which needs it where the engine is lost."""

    request: int
    prefilled: int
    cached: int


Packed = Token | Figured | Scored | Ended | Pooled | Began


class Events(msgspec.Struct, frozen=True, tag=True):
    """What happened to the requests of this front in one step, in order."""

    events: tuple[Packed, ...]


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The status that was asked for."""

    number: int
    status: Status


class Profiled(msgspec.Struct, frozen=True, tag=True):
    """What was recorded; or, in `conflict`, why that could not begin or end."""

    number: int
    traces: Traces = ()
    conflict: str | None = None


class Noticed(msgspec.Struct, frozen=True, tag=True):
    """Ranks were lost, for `mending`, or go on: then that is None. `incidents` are the last losses that were mended."""

    mending: Incident | None
    incidents: tuple[Incident, ...]


class Resharded(msgspec.Struct, frozen=True, tag=True):
    """Other ranks serve; or, in `refused`, why not, which is of a `kind`: something else is under way, it cannot be, the engine
    has ended, or it went wrong."""

    number: int
    refused: str | None = None
    kind: Literal["conflict", "user", "gone", "failed"] = "failed"


RESHARD_ERRORS: dict[Literal["conflict", "user", "gone", "failed"], type[ShardwiseError]] = {
    "conflict": Conflict,
    "user": UserError,
    "gone": Unavailable,
    "failed": ShardwiseError,
}
"""What those raise who asked for other shares, by the kind of the refusal."""


class Recut(msgspec.Struct, frozen=True, tag=True):
    """From now on requests are bound by another setup: ranks were lost, came back, or were resharded."""

    boot: Boot


class Gone(msgspec.Struct, frozen=True, tag=True):
    """The engine has ended, and every request with it. Nothing comes after it."""

    reason: str


# --- to whoever started the engine's process --------------------------------------------------------------------------


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Some more bytes of a rank's weights are in place."""

    rank: int
    bytes: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """All ranks wait for steps."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It could not start. `mendable`: the user can mend it."""

    message: str
    mendable: bool


Asked = Submit | Knock | Abort | FinishChoice | Ask | Profile | Reshard
Said = Admitted | Refused | Events | Answer | Profiled | Resharded | Recut | Noticed | Gone
Message = Boot | Asked | Said | Loading | Ready | Failed

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class BridgeError(ShardwiseError):
    """What came is no message of ours."""


def decode(body: bytes | bytearray | memoryview) -> Message:
    """The message in `body`; BridgeError if there is none."""
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise BridgeError(f"not a message: {error}") from None


def frame(message: Message) -> bytes:
    """A message as it travels; BridgeError if it is longer than any frame may be."""
    body = _ENCODER.encode(message)
    if len(body) > LIMIT_BYTES:
        raise BridgeError(f"a {type(message).__name__} message of {len(body)} bytes is over the limit of {LIMIT_BYTES}")
    return len(body).to_bytes(4, "little") + body


def event_frames(events: Sequence[Packed], limit: int = LIMIT_BYTES) -> Iterator[bytes]:
    """One frame of events, in order; more where it would be over the limit. BridgeError where a single event is."""
    body = _ENCODER.encode(Events(tuple(events)))
    if len(body) <= limit:
        yield len(body).to_bytes(4, "little") + body
        return
    middle = len(events) // 2
    if not middle:
        raise BridgeError(f"one event takes {len(body)} bytes, over the limit of {limit}")
    yield from event_frames(events[:middle], limit)
    yield from event_frames(events[middle:], limit)


def pack(event: told.Event, request: int) -> Packed:
    """An event as it travels, of the request that its front knows as `request`."""
    if isinstance(event, told.Emitted):
        chosen = event.chosen
        if chosen.rank:
            return Figured(request, event.choice, chosen, event.finish)
        return Token(request, event.choice, chosen.token, event.finish)
    if isinstance(event, told.Ended):
        return Ended(request, event.error, event.prefilled, event.cached, event.preempted, event.asked, event.unfit)
    if isinstance(event, told.Pooled):
        return Pooled(request, event.vector, event.count)
    return Scored(request, event.scores)


def unpack(event: Token | Figured | Scored | Ended | Pooled) -> told.Event:
    """The event that a front is told."""
    if isinstance(event, Token):
        return told.Emitted(event.request, event.choice, Chosen(event.token), event.finish)
    if isinstance(event, Ended):
        return told.Ended(event.request, event.error, event.prefilled, event.cached, event.preempted, event.asked, event.unfit)
    if isinstance(event, Figured):
        return told.Emitted(event.request, event.choice, event.chosen, event.finish)
    if isinstance(event, Pooled):
        return told.Pooled(event.request, event.vector, event.count)
    return told.Scored(event.request, event.scores)


class Frames(wire.Frames[Message]):
    """A stream of bytes cut into messages, however it arrives. BridgeError for what is none."""

    def __init__(self) -> None:
        super().__init__(decode, BridgeError)
