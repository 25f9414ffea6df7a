"""What engine and ranks say to each other: typed messages, msgpack, length first. Nothing is ever pickled."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from shardwise.errors import ShardwiseError
from shardwise.runtime.limits import Limits
from shardwise.sched.step import Draw, Result, Step

LIMIT_BYTES = 64 * 2**20
"""The longest message either side accepts: far above any step, far below any memory."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """Everything a rank needs to know of the group of one epoch. A rank that is in a group leaves it for one of a later epoch,
    and keeps what it has loaded of the same model. `config` is the model's config.json as JSON text: msgpack has no whole
    numbers beyond 64 bits.

    `folder` None means random weights. `pages` counts the page SCRATCH of each cache group too. `memory`: bytes that the
    process holds itself to, on a CPU. `cores`: the processors of each rank, of all of them so that torchrun's may get one
    message; empty where they run on any. `crowded`: ranks take turns on the processors. `quantization`: the kind and the group
    that weights are quantised to while loaded. `rendezvous`: the folder where ranks meet that do not talk through shared
    memory, one for each epoch; the sender's to remove once all are ready.
    """

    rank: int
    config: str
    folder: str | None
    tp: int
    shares: tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
    expert_parallel: bool
    dtype: str
    kv_dtype: str
    activations: str | None
    device: str
    pages: tuple[int, ...]
    limits: Limits
    threads: int
    epoch: int
    deadline_s: float
    memory: int | None
    quantization: tuple[str, int] | None = None
    cores: tuple[tuple[int, ...], ...] = ()
    crowded: bool = False
    rendezvous: str = ""


class Loading(msgspec.Struct, frozen=True, tag=True):
    """Some more bytes of the rank's weights are in place."""

    bytes: int
    epoch: int = 0


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The rank waits for steps of the group of `epoch`: in process `pid` of `host`. `kept_bytes` of its weights were there
    before, of an earlier epoch."""

    weight_bytes: int
    kv_bytes: int
    peak_bytes: int
    pid: int
    host: str
    epoch: int = 0
    kept_bytes: int = 0


class Forward(msgspec.Struct, frozen=True, tag=True):
    """One step to compute, up to its logits. It is not answered."""

    step: Step


class Sample(msgspec.Struct, frozen=True, tag=True):
    """How to choose the tokens of step `number`, whose Forward came last: a draw for each sequence in the `drawn` of its items,
    in order. Answered by Done, also where nothing is drawn."""

    number: int
    draws: tuple[Draw, ...]


class Draws(msgspec.Struct, frozen=True, tag=True):
    """Draws of the step that is sampled next, which come before those of its Sample: one message cannot hold them all."""

    draws: tuple[Draw, ...]


class Results(msgspec.Struct, frozen=True, tag=True):
    """Some results of the step that is done next, which come before those of its Done: one message cannot hold them all."""

    results: tuple[Result, ...]
    epoch: int = 0


class Done(msgspec.Struct, frozen=True, tag=True):
    """A step's results; empty from all ranks but the lead. `busy_s`: how long this rank worked on it, waiting for its peers
    included, waiting for the engine not."""

    number: int
    results: tuple[Result, ...]
    busy_s: float
    epoch: int = 0


class Logits(msgspec.Struct, frozen=True, tag=True):
    """One step to compute, instead of Forward and Sample: the logits of all its rows are wanted. The lead rank answers with as
    many Rows as it takes, the others with nothing."""

    step: Step


class Rows(msgspec.Struct, frozen=True, tag=True):
    """Some more rows of logits, in order: float32, little-endian, `vocabulary` of them a row."""

    vocabulary: int
    logits: bytes

    @property
    def count(self) -> int:
        return len(self.logits) // (4 * self.vocabulary)


PIECE_BYTES = 4 * 2**20
"""The most logits in one message, unless a single row is longer. A rank holds no more of them at once, in a few copies."""


def piece_rows(vocabulary: int) -> int:
    """How many rows of logits go into one message."""
    return max(1, PIECE_BYTES // (4 * vocabulary))


class Record(msgspec.Struct, frozen=True, tag=True):
    """What the rank does is to be recorded, from its next step on and for so many steps at most, then written to a file of
    `folder` with `stamp` in its name. Answered by Recorded when it is."""

    folder: str
    stamp: str
    steps: int


class EndRecord(msgspec.Struct, frozen=True, tag=True):
    """Enough was recorded. Ignored where nothing is."""


class Recorded(msgspec.Struct, frozen=True, tag=True):
    """What a rank recorded: so many bytes in the file `path`, "" where no step came. `error` says why there is none."""

    path: str
    bytes: int
    steps: int
    error: str | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The rank has left the group of `epoch`, or could not join it, and waits for the Start of a later one; it drops what else
    comes before. `mendable`: the user can mend it. `secondary`: another rank is at fault, `culprit` where that is known."""

    message: str
    mendable: bool
    culprit: int | None = None
    secondary: bool = False
    epoch: int = 0


class Stop(msgspec.Struct, frozen=True, tag=True):
    """The end, where closing the channel cannot say so."""


Steps = Forward | Draws | Sample | Results | Done | Logits | Rows
Message = Start | Loading | Ready | Steps | Record | EndRecord | Recorded | Failed | Stop


class WireError(ShardwiseError):
    """The other side sent what is not a message."""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The bytes of a message; WireError if it is longer than any message may be."""
    body = _ENCODER.encode(message)
    if len(body) > LIMIT_BYTES:
        raise WireError(f"a {type(message).__name__} message of {len(body)} bytes is over the limit of {LIMIT_BYTES}")
    return body


def encode_sample(number: int, draws: tuple[Draw, ...], limit: int = LIMIT_BYTES) -> Iterator[bytes]:
    """The bytes of a Sample, after those of as many Draws as it takes to keep each message below `limit`. WireError where a
    single draw is longer."""
    body = _ENCODER.encode(Sample(number, draws))
    if len(body) <= limit:
        yield body
        return
    middle = len(draws) // 2
    if not middle:
        raise WireError(f"one draw takes {len(body)} bytes, over the limit of {limit}")
    *early, last = (*_pieces(draws[:middle], limit), *_pieces(draws[middle:], limit))
    yield from (encode(Draws(piece)) for piece in early)
    yield encode(Sample(number, last))


def _pieces(draws: tuple[Draw, ...], limit: int) -> Iterator[tuple[Draw, ...]]:
    middle = len(draws) // 2
    if not middle or len(_ENCODER.encode(draws)) <= limit // 2:
        yield draws
    else:
        yield from _pieces(draws[:middle], limit)
        yield from _pieces(draws[middle:], limit)


def in_messages(results: tuple[Result, ...], limit: int = PIECE_BYTES) -> Iterator[tuple[Result, ...]]:
    """A step's results in as many parts as it takes to keep the pooled vectors of each within `limit` bytes, unless one alone
    is longer; at least one part."""
    start, size = 0, 0
    for place, result in enumerate(results):
        size += len(result.pooled)
        if size > limit and place > start:
            yield results[start:place]
            start, size = place, len(result.pooled)
    yield results[start:]


def decode(body: bytes | memoryview) -> Message:
    """The message in `body`; WireError if there is none."""
    try:
        return _DECODER.decode(body)
    except msgspec.DecodeError as error:
        raise WireError(f"not a message: {error}") from None


M = TypeVar("M")


class Frames(Generic[M]):
    """A stream of bytes cut into messages, length first, however it arrives. `decode` reads one; `wrong` is raised for what can
    be none: the stream is of no use any more then."""

    def __init__(self, decode: Callable[[bytes | memoryview], M], wrong: type[ShardwiseError]) -> None:
        self._decode, self._wrong = decode, wrong
        self._bytes = bytearray()
        self._wanted = 4

    def feed(self, data: bytes | bytearray | memoryview) -> list[M]:
        """The messages that are complete now."""
        self._bytes += data
        found: list[M] = []
        if len(self._bytes) < self._wanted:
            return found
        at, end = 0, len(self._bytes)
        self._wanted = 4
        with memoryview(bytes(self._bytes)) as view:
            while end - at >= 4:
                size = int.from_bytes(view[at : at + 4], "little")
                if size > LIMIT_BYTES:
                    raise self._wrong(f"a message of {size} bytes is announced; the limit is {LIMIT_BYTES}")
                if end - at - 4 < size:
                    self._wanted = 4 + size
                    break
                found.append(self._decode(view[at + 4 : at + 4 + size]))
                at += 4 + size
        del self._bytes[:at]
        return found


class Channel:
    """One end of a stream socket that carries messages. `receive` gives None when the other side is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message) -> None:
        """Raises OSError if the other side is gone."""
        self.send_encoded(encode(message))

    def send_encoded(self, body: bytes) -> None:
        """The same for a message that was encoded once for several channels."""
        self._sock.sendall(len(body).to_bytes(4, "little") + body)

    def receive(self) -> Message | None:
        """The next message, waiting for it; None at the end of the stream."""
        head = self._exactly(4)
        if head is None:
            return None
        size = int.from_bytes(head, "little")
        if size > LIMIT_BYTES:
            raise WireError(f"a message of {size} bytes is announced; the limit is {LIMIT_BYTES}")
        body = self._exactly(size)
        return None if body is None else decode(body)

    def _exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._sock.recv(min(count - len(parts), 2**20))
            except ConnectionResetError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)

    def close(self) -> None:
        self._sock.close()
