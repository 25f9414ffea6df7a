"""N ranks in one process, a thread each: for tests and in-process use. Sums in rank order.

The rank that arrives last does the work of a collective for all of them while the others wait, so no tensor is read after
its owner went on. CUDA tensors of different devices may meet here; the host waits for their streams.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from shardwise.comm.asking import Asking
from shardwise.comm.asks import DISAGREE, Ask, failure
from shardwise.comm.protocol import DEADLINE_S, Comm
from shardwise.comm.sums import rank_order_sum

T = TypeVar("T")


@dataclass(slots=True)
class _Round:
    """One collective: who has come, and what each shall receive."""

    asks: dict[int, Ask] = field(default_factory=dict)
    results: list[Tensor] | None = None


@dataclass(slots=True, eq=False)
class _Letter:
    """One message on its way."""

    ask: Ask
    taken: bool = False


@dataclass(frozen=True, slots=True)
class _Failure:
    culprit: int | None
    reason: str
    cause: BaseException | None = None


class Meeting:
    """Where the ranks of a group meet: one lock, one round at a time, a queue for each pair. The first failure is final."""

    def __init__(self, size: int, deadline_s: float = DEADLINE_S) -> None:
        if size < 1 or deadline_s <= 0:
            raise ValueError(f"a group has 1 rank or more and a deadline above 0 s, not {size} and {deadline_s}")
        self.size = size
        self.deadline_s = deadline_s
        self._changed = threading.Condition()
        self._round = _Round()
        self._mail: dict[tuple[int, int], deque[_Letter]] = {}
        self._left: dict[int, str] = {}
        self._failure: _Failure | None = None

    @property
    def cause(self) -> BaseException | None:
        """The exception that broke the group first, if it broke by one."""
        return None if self._failure is None else self._failure.cause

    @property
    def broken(self) -> bool:
        """Whether the group failed; it stays so."""
        return self._failure is not None

    def meet(self, ask: Ask) -> Tensor:
        """One collective: waits for all ranks, returns this rank's result."""
        with self._changed:
            self._check_open(ask)
            meeting = self._round
            meeting.asks[ask.rank] = ask
            if len(meeting.asks) == self.size:
                self._round = _Round()
                meeting.results = self._carry_out(ask, [meeting.asks[rank] for rank in range(self.size)])
                self._changed.notify_all()
            absent = [rank for rank in range(self.size) if rank != ask.rank]
            self._wait(ask, lambda: meeting.results is not None, lambda: [r for r in absent if r not in meeting.asks])
            assert meeting.results is not None
            return meeting.results[ask.rank]

    def post(self, ask: Ask) -> Tensor:
        """One send: returns when the receiver has taken it."""
        with self._changed:
            self._check_open(ask)
            letter = _Letter(ask)
            self._mail.setdefault((ask.rank, ask.peer), deque()).append(letter)
            self._changed.notify_all()
            self._wait(ask, lambda: letter.taken, lambda: [ask.peer])
            return ask.x

    def take(self, ask: Ask) -> Tensor:
        """One recv: fills the asker's tensor."""
        with self._changed:
            self._check_open(ask)
            queue = self._mail.setdefault((ask.peer, ask.rank), deque())
            self._wait(ask, lambda: bool(queue), lambda: [ask.peer])
            letter = queue.popleft()
            self._check_agreement(ask, [letter.ask, ask])
            with torch.no_grad():
                ask.x.copy_(letter.ask.x)
            _settle([ask.x])
            letter.taken = True
            self._changed.notify_all()
            return ask.x

    def leave(self, rank: int, reason: str) -> None:
        """The rank makes no more calls. Those who need it fail, those who do not go on."""
        with self._changed:
            self._left.setdefault(rank, reason)
            self._changed.notify_all()

    def fail(self, culprit: int | None, reason: str, cause: BaseException | None = None) -> None:
        """Breaks the group for all ranks, at once; only the first failure is kept."""
        with self._changed:
            if self._failure is None:
                self._failure = _Failure(culprit, reason, cause)
            self._changed.notify_all()

    def _carry_out(self, ask: Ask, asked: list[Ask]) -> list[Tensor]:
        self._check_agreement(ask, asked)
        try:
            # A result must not take on the inference mode of whichever rank came last.
            with torch.inference_mode(False), torch.no_grad():
                results = _COLLECTIVES[ask.op](asked)
            _settle(results)
        except Exception as error:
            self.fail(None, f"{ask.op} at {ask.site!r} failed: {error}", error)
            self._raise_failure(ask)
        return results

    def _check_agreement(self, ask: Ask, asked: list[Ask]) -> None:
        """Breaks the group where one rank's call is not the others'; the culprit is the first that differs from most."""
        votes = [sum(one.agrees(other) for other in asked) for one in asked]
        if min(votes) < len(asked):
            culprit = asked[votes.index(min(votes))].rank
            said = "; ".join(f"rank {one.rank}: {one}" for one in asked)
            self._fail_and_raise(ask, culprit, f"{DISAGREE}: {said}")
        if ask.op != "all_to_all":
            return
        for sender in asked:
            for receiver in asked:
                sent, expected = sender.send_counts[receiver.rank], receiver.recv_counts[sender.rank]
                if sent != expected:
                    reason = (
                        f"{DISAGREE}: rank {sender.rank} sends {sent} rows to rank {receiver.rank}, which expects {expected}"
                    )
                    self._fail_and_raise(ask, sender.rank, reason)

    def _wait(self, ask: Ask, done: Callable[[], bool], missing: Callable[[], list[int]]) -> None:
        """Waits for `done`; a failure, a peer that left, or the deadline end it with a CommError."""
        deadline = time.monotonic() + self.deadline_s
        while not done():
            if self._failure is not None:
                self._raise_failure(ask)
            gone = [rank for rank in missing() if rank in self._left]
            if gone:
                self._fail_and_raise(ask, gone[0], f"rank {gone[0]} {self._left[gone[0]]}")
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                late = missing()
                named = ", ".join(f"rank {rank}" for rank in late)
                self._fail_and_raise(ask, late[0], f"{named} did not come within {self.deadline_s} s")
            self._changed.wait(remaining_s)

    def _check_open(self, ask: Ask) -> None:
        if self._failure is not None:
            self._raise_failure(ask)
        if ask.rank in self._left:
            raise failure(ask, f"this rank {self._left[ask.rank]}", ask.rank)

    def _fail_and_raise(self, ask: Ask, culprit: int, reason: str) -> NoReturn:
        error = failure(ask, reason, culprit)
        self.fail(culprit, reason, error)
        raise error

    def _raise_failure(self, ask: Ask) -> NoReturn:
        assert self._failure is not None
        raise failure(ask, self._failure.reason, self._failure.culprit)


class ThreadComm(Asking):
    """One rank's end of a `Meeting`.

    A `send` returns when the other rank has received: a program that only works with buffers fails here.
    """

    def __init__(self, meeting: Meeting, rank: int, *, epoch: int = 0) -> None:
        super().__init__(rank, meeting.size, epoch)
        self._meeting = meeting

    def carry_out(self, ask: Ask) -> Tensor:
        """Meets the other ranks."""
        try:
            _settle([ask.x])  # a peer's thread reads it next: the stream of its owner must have written it
            if ask.op == "send":
                return self._meeting.post(ask)
            return self._meeting.take(ask) if ask.op == "recv" else self._meeting.meet(ask)
        except BaseException as error:
            self.abort(error)  # an interrupt would otherwise leave its tensor in the round; after a CommError it does nothing
            raise

    def close(self) -> None:
        """This rank takes no further part; whoever still needs it fails at once."""
        self._meeting.leave(self.rank, "has left the group")

    def abort(self, cause: BaseException) -> None:
        """Breaks the group for all ranks at once, with this rank as the culprit: it failed outside of a collective."""
        self._meeting.fail(self.rank, f"rank {self.rank} stopped: {type(cause).__name__}: {cause}", cause)


def threads(size: int, *, deadline_s: float = DEADLINE_S, epoch: int = 0) -> tuple[ThreadComm, ...]:
    """The ends of a new group, one for each of `size` threads."""
    meeting = Meeting(size, deadline_s)
    return tuple(ThreadComm(meeting, rank, epoch=epoch) for rank in range(size))


def run(size: int, body: Callable[[Comm], T], *, deadline_s: float = DEADLINE_S, epoch: int = 0) -> list[T]:
    """Runs `body(comm)` on `size` ranks, each in a thread, and returns the results in rank order.

    The first exception of any rank ends the others' calls at once and is raised here, not what followed from it. The
    threads take on the caller's grad mode. A rank that is stuck outside of a collective when the group broke is given
    `deadline_s` to end, and then left behind.
    """
    meeting = Meeting(size, deadline_s)
    comms = [ThreadComm(meeting, rank, epoch=epoch) for rank in range(size)]
    results: dict[int, T] = {}
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def live(comm: ThreadComm) -> None:
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                results[comm.rank] = body(comm)
        except BaseException as error:
            comm.abort(error)
        finally:
            comm.close()

    workers = [threading.Thread(target=live, args=(comm,), name=f"rank {comm.rank}", daemon=True) for comm in comms]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            _join(worker, meeting)
    except BaseException as error:  # an interrupt of the caller: the ranks must not live on
        meeting.fail(None, f"the caller stopped: {type(error).__name__}", error)
        raise
    if meeting.cause is not None:
        raise meeting.cause
    return [results[rank] for rank in range(size)]


def _join(worker: threading.Thread, meeting: Meeting) -> None:
    while worker.is_alive() and not meeting.broken:
        worker.join(0.05)
    worker.join(meeting.deadline_s)


def _all_reduce(asked: list[Ask]) -> list[Tensor]:
    total = _sum([ask.x for ask in asked])
    return [total] + [total.to(ask.x.device, copy=True) for ask in asked[1:]]


def _all_gather(asked: list[Ask]) -> list[Tensor]:
    return [torch.cat([other.x.to(ask.x.device) for other in asked], ask.dim) for ask in asked]


def _reduce_scatter(asked: list[Ask]) -> list[Tensor]:
    cut = [ask.x.split(ask.send_counts, ask.dim) for ask in asked]
    return [_sum([parts[ask.rank] for parts in cut]).to(ask.x.device) for ask in asked]


def _all_to_all(asked: list[Ask]) -> list[Tensor]:
    cut = [ask.x.split(ask.send_counts) for ask in asked]
    return [torch.cat([parts[ask.rank].to(ask.x.device) for parts in cut]) for ask in asked]


def _broadcast(asked: list[Ask]) -> list[Tensor]:
    source = asked[asked[0].peer].x
    return [source.to(ask.x.device, copy=True, memory_format=torch.contiguous_format) for ask in asked]


def _barrier(asked: list[Ask]) -> list[Tensor]:
    return [ask.x for ask in asked]


_COLLECTIVES: dict[str, Callable[[list[Ask]], list[Tensor]]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "barrier": _barrier,
}


def _sum(parts: list[Tensor]) -> Tensor:
    """The rank-order sum, on the device of the first part."""
    return rank_order_sum([part.to(parts[0].device) for part in parts])


def _settle(tensors: list[Tensor]) -> None:
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        torch.cuda.current_stream(device).synchronize()
