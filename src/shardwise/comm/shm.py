"""One rank's end of a group that talks through shared memory: the ranks of one host, as processes or as threads.

A collective is rounds: each rank shows the others what they need, and reads what they show once all have come. A sum of float32
is one call of the compiled library; all else is made here, of the same rounds. What the waiting and the order of memory
accesses are, `native/shm.cpp` knows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from ctypes import addressof, memmove
from dataclasses import replace
from hashlib import blake2b
from itertools import pairwise
from math import prod
from typing import NoReturn

import torch
from torch import Tensor

from shardwise.comm import asks
from shardwise.comm.asking import Asking
from shardwise.comm.asks import DISAGREE, Ask, failure
from shardwise.comm.protocol import DEADLINE_S
from shardwise.comm.shared import LETTER_BYTES, SLOT_BYTES, Outcome, Shared, packed, unpacked
from shardwise.comm.sums import rank_order_sum

PATIENCE_S = 1.0
"""How long a rank that found a difference waits for what the others asked. Only ever spent on a group that is broken."""

_TEXT_BYTES = 512  # of a letter: what it is
_DATA_BYTES = LETTER_BYTES - _TEXT_BYTES
_REMEMBERED = 4096


def shm(
    fd: int, rank: int, size: int, *, deadline_s: float = DEADLINE_S, epoch: int = 0, crowded: bool | None = None
) -> ShmComm:
    """This rank's end of a new group in the memory behind `fd`, which stays the caller's; returns when all ranks are there.
    `crowded`: see `Shared`.

    Raises CommError that names the ranks which did not come within the deadline, or came with another epoch.
    """
    return ShmComm(Shared(fd, rank, size, deadline_s=deadline_s, epoch=epoch, crowded=crowded), deadline_s=deadline_s)


class ShmComm(Asking):
    """Sums are made in rank order: 16-bit floats in float32 and rounded once, all else in its own dtype.

    What a call is goes along as a digest, so ranks that disagree are told so before anything is read. A `send` returns
    when the letter is written, of which two are kept for each pair of ranks.
    """

    def __init__(self, shared: Shared, *, deadline_s: float) -> None:
        super().__init__(shared.rank, shared.size, shared.epoch)
        self.deadline_s = deadline_s
        self._shared = shared
        self._handle = shared.handle  # None once the group is broken, or this rank has left it
        # By the dtype of what is summed, and of what the sums are rounded to.
        self._sums = {
            (torch.float32, None): shared.all_reduce,
            (torch.float64, None): shared.all_reduce_wide,
            (torch.float64, torch.float32): shared.all_reduce_narrow,
        }
        with torch.inference_mode(False):  # a tensor born in inference mode could not be written to outside of it
            self._memory = torch.frombuffer(shared.memory, dtype=torch.uint8)
        self._at = addressof(shared.memory)
        self._digests: dict[tuple[object, ...], int] = {}
        self._gathers: dict[tuple[object, ...], Ask] = {}
        self._broken = ""
        self._culprit: int | None = None

    def all_reduce(self, x: Tensor, *, site: str, out: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """See `Comm.all_reduce`. The usual case has nothing to check: contiguous floats or doubles, into a new tensor or
        into themselves."""
        dtype = None if dtype is x.dtype else dtype
        add = self._sums.get((x.dtype, dtype))
        if add and (out is None or (out is x and dtype is None)) and x.is_cpu and x.is_contiguous() and not x.requires_grad:
            digest = self._digests.get((site, x.dtype, dtype, x.shape))
            if digest is not None and self._handle is not None:
                result = torch.empty_like(x, dtype=dtype) if out is None else x
                outcome = add(self._handle, digest, x.data_ptr(), result.data_ptr(), x.numel())
                if outcome:
                    self._fail(asks.all_reduce(self, x, site, out, dtype), outcome)
                return result
        return super().all_reduce(x, site=site, out=out, dtype=dtype)

    def all_gather(self, x: Tensor, ranges: Sequence[range], *, dim: int = -1, site: str, out: Tensor | None = None) -> Tensor:
        """See `Comm.all_gather`. The usual case was checked before: equal parts of a contiguous tensor, which fit one round."""
        if out is None and x.is_cpu and x.is_contiguous() and not x.requires_grad and self._handle is not None:
            known = self._gathers.get((site, x.shape, x.dtype, dim, *ranges))
            if known is not None:
                return self._gather(x, known)
        ask = asks.all_gather(self, x, ranges, dim, site, out)
        result = self._ask(ask)
        if x.is_cpu and 0 < x.nbytes <= SLOT_BYTES and len(set(ask.recv_counts)) == 1:
            if len(self._gathers) >= _REMEMBERED:
                self._gathers.clear()
            # Not with x itself, which would be kept.
            self._gathers[site, x.shape, x.dtype, dim, *ranges] = replace(ask, x=torch.empty(0, dtype=x.dtype))
        return result

    def _gather(self, x: Tensor, known: Ask) -> Tensor:
        """What `known` was, once more, with x."""
        shared, handle, size, dim = self._shared, self._handle, x.nbytes, known.dim
        memmove(self._at + shared.slot(handle), x.data_ptr(), size)
        if outcome := shared.round(handle, self._digest(known)):
            self._fail(known, outcome)
        parts = torch.empty((self.size, *x.shape), dtype=x.dtype)
        start = parts.data_ptr()
        for rank in range(self.size):
            memmove(start + rank * size, self._at + shared.shown(handle, rank), size)
        return parts.movedim(0, dim).reshape(known.result)

    def carry_out(self, ask: Ask) -> Tensor:
        """Carries out one call within the deadline, or breaks the group."""
        if self._handle is None:
            raise failure(ask, self._broken, self._culprit)
        try:
            with torch.no_grad():
                return self._within(ask)
        except BaseException as error:
            self._stop(error)
            raise

    def close(self) -> None:
        """Leaves the group. Peers that still need this rank are told at once."""
        self._end("this rank has left the group", self.rank)

    def _within(self, ask: Ask) -> Tensor:
        x = ask.x.detach().to("cpu").contiguous()
        if ask.op == "recv":
            self._receive(ask, x)
            return ask.x if ask.x.data_ptr() == x.data_ptr() else ask.x.copy_(x)
        match ask.op:
            case "all_reduce":
                result = self._all_reduce(ask, x)
            case "all_gather":
                result = self._all_gather(ask, x)
            case "reduce_scatter":
                result = self._reduce_scatter(ask, x)
            case "all_to_all":
                result = self._all_to_all(ask, x)
            case "broadcast":
                result = self._broadcast(ask, x)
            case "send":
                self._send(ask, x)
                result = x
            case _:
                self._round(ask, _NOTHING)
                result = x
        return result.to(ask.x.device)

    # --- collectives: all ranks make the same rounds, for all know the greatest part -----------------------------------

    def _all_reduce(self, ask: Ask, x: Tensor) -> Tensor:
        # What is not rounded here, is by who calls this.
        dtype = ask.dtype if (x.dtype, ask.dtype) in self._sums else None
        result = torch.empty_like(x, dtype=dtype)
        if add := self._sums.get((x.dtype, dtype)):
            digest = self._digest(ask)
            if dtype == ask.dtype:
                self._digests[ask.site, x.dtype, dtype, x.shape] = digest
            if outcome := add(self._handle, digest, x.data_ptr(), result.data_ptr(), x.numel()):
                self._fail(ask, outcome)
            return result
        mine, sums = _bytes(x), _bytes(result)
        for piece in _pieces(x.nbytes):
            self._round(ask, mine[piece])
            shown = [part.view(x.dtype) for part in self._all_shown(len(mine[piece]))]
            sums[piece].copy_(_bytes(rank_order_sum(shown)))
        return result

    def _all_gather(self, ask: Ask, x: Tensor) -> Tensor:
        result = x.new_empty(ask.result)
        places = result.split(ask.recv_counts, ask.dim)
        # Straight into the result where a rank's part lies in one stretch of it: dim 0, or a single row.
        arrived = [place if place.is_contiguous() else x.new_empty(place.shape) for place in places]
        mine, parts = _bytes(x), [_bytes(part) for part in arrived]
        for piece in _pieces(max(map(len, parts))):
            self._round(ask, mine[piece])
            for rank, part in enumerate(parts):
                self._copy_shown(rank, 0, part[piece])
        for place, part in zip(places, arrived, strict=True):
            if place is not part:
                place.copy_(part)
        return result

    def _reduce_scatter(self, ask: Ask, x: Tensor) -> Tensor:
        parts = [_bytes(part.contiguous()) for part in x.split(ask.send_counts, ask.dim)]
        result, packed_parts = x.new_empty(ask.result), torch.cat(parts)
        sums, begin = _bytes(result), sum(map(len, parts[: self.rank]))
        for piece in _pieces(len(packed_parts)):
            self._round(ask, packed_parts[piece])
            low, high = max(begin, piece.start), min(begin + len(sums), piece.stop)
            if low < high:
                within = slice(low - piece.start, high - piece.start)
                shown = [part[within].view(x.dtype) for part in self._all_shown(len(packed_parts[piece]))]
                sums[low - begin : high - begin].copy_(_bytes(rank_order_sum(shown)))
        return result

    def _all_to_all(self, ask: Ask, x: Tensor) -> Tensor:
        sent = self._all_counts(ask)
        result = x.new_empty(ask.result)
        mine, arrived = _bytes(x), _bytes(result)
        row_bytes = prod(ask.result[1:]) * x.itemsize
        for piece in _pieces(max(map(sum, sent)) * row_bytes):
            self._round(ask, mine[piece])
            at = 0
            for rank, counts in enumerate(sent):
                begin, length = sum(counts[: self.rank]) * row_bytes, counts[self.rank] * row_bytes
                low, high = max(begin, piece.start), min(begin + length, piece.stop)
                if low < high:
                    self._copy_shown(rank, low - piece.start, arrived[at + low - begin : at + high - begin])
                at += length
        return result

    def _all_counts(self, ask: Ask) -> list[list[int]]:
        """What each rank sends to each, compared with what each expects."""
        own = torch.tensor([ask.send_counts, ask.recv_counts])
        self._round(ask, _bytes(own))
        counts = torch.stack([part.view(own.dtype) for part in self._all_shown(own.nbytes)]).view(self.size, 2, self.size)
        sent, expected = counts[:, 0].tolist(), counts[:, 1].tolist()
        for sender in range(self.size):
            for receiver in range(self.size):
                count, awaited = sent[sender][receiver], expected[receiver][sender]
                if count != awaited:
                    reason = f"rank {sender} sends {count} rows to rank {receiver}, which expects {awaited}"
                    self._break(ask, sender, f"{DISAGREE}: {reason}")
        return sent

    def _broadcast(self, ask: Ask, x: Tensor) -> Tensor:
        root = self.rank == ask.peer
        result = x.clone() if root else torch.empty_like(x)
        arrived = _bytes(result)
        for piece in _pieces(x.nbytes):
            self._round(ask, arrived[piece] if root else _NOTHING)
            if not root:
                self._copy_shown(ask.peer, 0, arrived[piece])
        return result

    def _round(self, ask: Ask, mine: Tensor) -> None:
        """Shows bytes of this rank, and waits until all have shown theirs."""
        if len(mine):
            place = self._shared.slot(self._handle)
            self._memory[place : place + len(mine)].copy_(mine)
        if outcome := self._shared.round(self._handle, self._digest(ask)):
            self._fail(ask, outcome)

    def _all_shown(self, length: int) -> list[Tensor]:
        places = [self._shared.shown(self._handle, rank) for rank in range(self.size)]
        return [self._memory[place : place + length] for place in places]

    def _copy_shown(self, rank: int, start: int, to: Tensor) -> None:
        if len(to):
            place = self._shared.shown(self._handle, rank) + start
            to.copy_(self._memory[place : place + len(to)])

    # --- letters -------------------------------------------------------------------------------------------------------

    def _send(self, ask: Ask, x: Tensor) -> None:
        mine, text, digest = _bytes(x), packed(str(ask), _TEXT_BYTES), self._digest(ask)
        for piece in _pieces(x.nbytes, _DATA_BYTES):
            if outcome := self._shared.room(self._handle, ask.peer):
                self._fail(ask, outcome)
            place = self._shared.letter(self._handle, self.rank, ask.peer)
            self._shared.put(place, text)
            place += _TEXT_BYTES
            self._memory[place : place + len(mine[piece])].copy_(mine[piece])
            self._shared.send(self._handle, ask.peer, digest)

    def _receive(self, ask: Ask, x: Tensor) -> None:
        arrived, digest = _bytes(x), self._digest(ask)
        for piece in _pieces(x.nbytes, _DATA_BYTES):
            if outcome := self._shared.receive(self._handle, ask.peer, digest):
                self._fail(ask, outcome)
            place = self._shared.letter(self._handle, ask.peer, self.rank) + _TEXT_BYTES
            arrived[piece].copy_(self._memory[place : place + len(arrived[piece])])
            self._shared.take(self._handle, ask.peer)

    # --- failures ------------------------------------------------------------------------------------------------------

    def _digest(self, ask: Ask) -> int:
        """Eight bytes that are equal where ranks make the same call."""
        key = (ask.op, ask.site, ask.x.dtype, ask.agreed)
        found = self._digests.get(key)
        if found is None:
            if len(self._digests) >= _REMEMBERED:
                self._digests.clear()
            found = self._digests[key] = int.from_bytes(blake2b(str(ask).encode(), digest_size=8).digest(), "little")
        return found

    def _fail(self, ask: Ask, outcome: int) -> NoReturn:
        """Breaks the group for the reason that a call of the library gave."""
        shared = self._shared
        culprit = shared.culprit(self._handle)
        match Outcome(outcome):
            case Outcome.BROKEN:
                culprit, reason = shared.account(shared.breaker(self._handle))
            case Outcome.LEFT:
                reason = f"rank {culprit} has left the group"
            case Outcome.DEAD:
                reason = f"lost rank {culprit}: its process has ended"
            case Outcome.LATE:
                reason = f"{self._late(ask, culprit)} did not come within {self.deadline_s} s"
            case _:
                culprit, reason = self._difference(ask, culprit)
        self._break(ask, culprit, reason)

    def _late(self, ask: Ask, culprit: int) -> str:
        if ask.op in ("send", "recv"):
            return f"rank {culprit}"
        behind = [rank for rank in range(self.size) if rank != self.rank and self._shared.behind(self._handle, rank)]
        return ", ".join(f"rank {rank}" for rank in behind or [culprit])

    def _difference(self, ask: Ask, sender: int) -> tuple[int, str]:
        """(culprit, reason) where calls differ: the first that most others do not agree with, and what all asked for."""
        shared = self._shared
        if ask.op == "recv":
            place = shared.letter(self._handle, sender, self.rank)
            text = unpacked(bytes(shared.memory[place : place + _TEXT_BYTES])) or "another message"
            return sender, f"{DISAGREE}: rank {self.rank}: {ask}; rank {sender}: {text}"
        digests = [shared.digest(self._handle, rank) for rank in range(self.size)]
        votes = [digests.count(digest) for digest in digests]
        shared.say(str(ask))
        until = time.monotonic() + PATIENCE_S
        while None in (texts := [shared.said(rank) for rank in range(self.size)]) and time.monotonic() < until:
            time.sleep(0.001)
        said = "; ".join(f"rank {rank}: {text or 'another call'}" for rank, text in enumerate(texts))
        return votes.index(min(votes)), f"{DISAGREE}: {said}"

    def _break(self, ask: Ask, culprit: int, reason: str) -> NoReturn:
        culprit, reason = self._shared.fail(culprit, reason)
        known = None if culprit < 0 else culprit
        self._end(reason, known)
        raise failure(ask, reason, known)

    def _stop(self, error: BaseException) -> None:
        """The others must not take for data what this rank has left half done."""
        if self._handle is not None:
            self._shared.fail(self.rank, f"rank {self.rank} stopped: {type(error).__name__}: {error}")
            self._end(f"this rank stopped: {type(error).__name__}", self.rank)

    def _end(self, reason: str, culprit: int | None) -> None:
        if self._handle is not None:
            self._broken, self._culprit, self._handle = reason, culprit, None
            self._memory = _NOTHING
            self._shared.close()


_NOTHING = torch.empty(0, dtype=torch.uint8)


def _bytes(x: Tensor) -> Tensor:
    """The same memory as plain bytes, of a contiguous tensor. Not by `view(-1)`: a dim of one element may have any stride."""
    return x.as_strided((x.numel(),), (1,)).view(torch.uint8) if x.numel() else _NOTHING


def _pieces(length: int, most: int = SLOT_BYTES) -> Iterator[slice]:
    """So many bytes in pieces that fit; one piece of nothing where there is nothing."""
    starts = [*range(0, length, most), length] if length else [0, 0]
    return (slice(start, stop) for start, stop in pairwise(starts))
