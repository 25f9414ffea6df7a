"""What a front and the engine's process say to each other: typed messages, msgpack, length first, tokens in and tokens out.

Also how a `Setup` travels: deciding it twice would measure memory twice. Nothing is ever pickled; it opens no sockets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from shardwise.engine.incident import Incident
from shardwise.engine.memory import Bound
from shardwise.engine.profile import Bounds, Traces
from shardwise.engine.setup import Given, Setup
from shardwise.engine.status import Status
from shardwise.engine.supervise import FAIL_FAST, Policy
from shardwise.errors import RequestError, ShardwiseError
from shardwise.runtime import wire
from shardwise.sched import events as told
from shardwise.sched.events import Finish
from shardwise.sched.limits import Limits
from shardwise.sched.pooling import PoolingParams
from shardwise.sched.request import MOST, SamplingParams
from shardwise.sched.step import Chosen
from shardwise.sched.written import Written
from shardwise.spec.config import read_model
from shardwise.spec.formats import Grouped
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.requantised import quantised_as

MOST_RANKS = 4096
"""The most ranks that may be asked for: a front is not to fill the engine's memory."""

LIMIT_BYTES = 64 * 2**20
"""The longest frame that either side accepts: a million token ids take five."""

Id = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Words = tuple[tuple[Id, ...], ...]

# --- how a setup travels ----------------------------------------------------------------------------------------------


class Boot(msgspec.Struct, frozen=True, tag=True):
    """A `Setup` as plain values, the bounds of the queue, and what a loss leads to. `config` is the model's config.json as JSON
    text: msgpack has no whole numbers beyond 64 bits. The layout is made again from the same numbers."""

    name: str
    folder: str
    config: str
    tp: int
    shares: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    dtype: str
    kv_dtype: str
    activations: str | None
    expert_parallel: bool
    device: str
    load_format: str
    context: int
    bound: Bound
    pages: tuple[int, ...]
    limits: Limits
    threads: int
    memory: int | None
    quantization: tuple[str, int] | None = None
    cores: tuple[tuple[int, ...], ...] = ()
    given: Given = Given()
    queue: int | None = None
    queue_tokens: int | None = None
    policy: Policy = FAIL_FAST

    @staticmethod
    def of(setup: Setup, queue: int | None = None, queue_tokens: int | None = None, policy: Policy = FAIL_FAST) -> Boot:
        """Everything that it takes to have the same setup elsewhere."""
        layout = setup.layout
        return Boot(
            name=setup.name,
            folder=str(setup.folder),
            config=json.dumps(setup.config),
            tp=layout.mesh.tp,
            shares=(layout.shares.attention, layout.shares.mlp, layout.shares.vocab),
            dtype=layout.dtype,
            kv_dtype=layout.kv_dtype,
            activations=layout.activations,
            expert_parallel=layout.expert_parallel,
            device=setup.device,
            load_format=setup.load_format,
            context=setup.context,
            bound=setup.bound,
            pages=setup.pages,
            limits=setup.limits,
            threads=setup.threads,
            memory=setup.memory,
            quantization=(setup.quantization.kind, setup.quantization.size) if setup.quantization else None,
            cores=setup.cores,
            given=setup.given,
            queue=queue,
            queue_tokens=queue_tokens,
            policy=policy,
        )

    def setup(self) -> Setup:
        """The setup, equal to the one that it was made of."""
        config = json.loads(self.config)
        mesh, shares = Mesh(tp=self.tp), Shares(*self.shares)
        form = Grouped(*self.quantization) if self.quantization else None
        model = quantised_as(read_model(config), form)
        return Setup(
            name=self.name,
            folder=Path(self.folder),
            config=config,
            layout=Layout(model, mesh, shares, self.dtype, self.kv_dtype, self.expert_parallel, self.activations),
            device=self.device,
            load_format=self.load_format,
            context=self.context,
            bound=self.bound,
            pages=self.pages,
            limits=self.limits,
            threads=self.threads,
            memory=self.memory,
            quantization=form,
            cores=self.cores,
            given=self.given,
        )


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
    """Other ranks serve; or, in `refused`, why not, which is of a `kind`: something else is under way, or it cannot be."""

    number: int
    refused: str | None = None
    kind: Literal["conflict", "user", "failed"] = "failed"


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
