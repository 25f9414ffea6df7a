"""The memory that the ranks of one host share: how a rank finds its group's part of it, and the compiled library's calls on it.

It is one anonymous file, handed from process to process as a descriptor: nothing has a name, nothing is left behind, and a lock
that the kernel drops at a process's end says who lives. Knows no tensors and no collectives.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time
from contextlib import suppress
from enum import IntEnum
from zlib import crc32

from shardwise import native
from shardwise.comm.memory import CONTROL_BYTES, STRIDE_BYTES, WANTED_AT, begins
from shardwise.errors import CommError

SLOT_BYTES = 1 << 20
"""What a rank can show the others in one round. Memory is taken only where something was written."""
LETTER_BYTES = 1 << 18
"""What one letter carries at most, its text included."""
TEXT_BYTES = 2048
"""How long a text can be; what is longer is cut off."""

_SITE = "joining"
_POLL_S = 0.002


class Outcome(IntEnum):
    """How a call ended; `native/shm.h` counts them alike."""

    DONE = 0
    BROKEN = 1
    LEFT = 2
    DEAD = 3
    LATE = 4
    DIFFER = 5


class Shared:
    """One rank's end of a group's memory. One thread at a time uses it, and nothing of it after `close`.

    `crowded`: ranks take turns on the processors, so that waiting must not keep one busy; None where that is the number of
    ranks and of this process's processors to say. Raises CommError that names the ranks which did not come within `deadline_s`,
    or came with another epoch.
    """

    def __init__(self, fd: int, rank: int, size: int, *, deadline_s: float, epoch: int, crowded: bool | None = None) -> None:
        if not 0 <= rank < size or deadline_s <= 0:
            raise ValueError(f"rank {rank} of {size} with a deadline of {deadline_s} s: need 0 <= rank < size and above 0 s")
        self.rank, self.size, self.epoch = rank, size, epoch
        self._declare()
        self.bytes: int = self._bytes(size, SLOT_BYTES, LETTER_BYTES)
        offset = begins(epoch)
        alone = size <= len(os.sched_getaffinity(0)) if crowded is None else not crowded
        if size > WANTED_AT // 64 or self.bytes > STRIDE_BYTES:
            raise ValueError(f"{size} ranks do not fit into shared memory; use gloo")
        # Opened anew: a descriptor that was handed on shares its locks with whoever handed it on.
        self._fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        self.handle: int | None = None
        try:
            self._lock(offset)
            with suppress(PermissionError):  # the group of a later epoch has made it longer already
                if os.fstat(self._fd).st_size < offset + self.bytes:
                    os.ftruncate(self._fd, offset + self.bytes)
            self.handle = self._open(
                self._fd, offset, rank, size, SLOT_BYTES, LETTER_BYTES, int(not alone), round(deadline_s * 1e9), offset
            )
            if self.handle is None:
                raise joining_failed(rank, f"there is no room to map {self.bytes} bytes")
            self._meet(deadline_s)
        except BaseException:
            self.close()
            raise
        self.memory = (ctypes.c_ubyte * self.bytes).from_address(self._memory(self.handle))
        """All of the group's memory: where something lies, `slot`, `shown` and `letter` say."""

    def _declare(self) -> None:
        p, n, i, digest = native.POINTER, native.WHOLE, native.NUMBER, ctypes.c_uint64
        self._bytes = native.function("sw_shm_bytes", i, n, n, result=n)
        self._open = native.function("sw_shm_open", i, n, i, i, n, n, i, n, n, result=p)
        self._close = native.function("sw_shm_close", p)
        self._memory = native.function("sw_shm_memory", p, result=p)
        self._text = native.function("sw_shm_text", p, i, result=n)
        self._arrive = native.function("sw_shm_arrive", p)
        self._here = native.function("sw_shm_here", p, i, result=i)
        self._leave = native.function("sw_shm_leave", p)
        self._fail = native.function("sw_shm_fail", p, result=i)
        self.all_reduce = native.function("sw_shm_all_reduce", p, digest, p, p, n, result=i)
        """(handle, digest, x, out, floats): an Outcome."""
        self.all_reduce_wide = native.function("sw_shm_all_reduce_wide", p, digest, p, p, n, result=i)
        """The same of doubles."""
        self.all_reduce_narrow = native.function("sw_shm_all_reduce_narrow", p, digest, p, p, n, result=i)
        """The same of doubles, whose sums are rounded to floats."""
        self.round = native.function("sw_shm_round", p, digest, result=i)
        """(handle, digest): shows this rank's slot and waits for the others'; an Outcome."""
        self.slot = native.function("sw_shm_slot", p, result=n)
        """(handle): where this rank writes for its next round."""
        self.shown = native.function("sw_shm_shown", p, i, result=n)
        """(handle, rank): where that rank has written for the round that ended last. Valid until the next but one begins."""
        self.room = native.function("sw_shm_room", p, i, result=i)
        """(handle, to): waits until another letter to that rank may be written; an Outcome."""
        self.letter = native.function("sw_shm_letter", p, i, i, result=n)
        """(handle, from, to): where the next letter between the two lies."""
        self.send = native.function("sw_shm_send", p, i, digest)
        """(handle, to, digest)."""
        self.receive = native.function("sw_shm_receive", p, i, digest, result=i)
        """(handle, from, digest): waits for a letter; an Outcome."""
        self.take = native.function("sw_shm_take", p, i)
        """(handle, from): the letter was read."""
        self.breaker = native.function("sw_shm_breaker", p, result=i)
        """(handle): the rank that broke the group."""
        self.culprit = native.function("sw_shm_culprit", p, result=i)
        """(handle): the rank that was awaited last."""
        self.behind = native.function("sw_shm_behind", p, i, result=i)
        """(handle, rank): whether it has not come to this rank's round."""
        self.digest = native.function("sw_shm_digest", p, i, result=digest)
        """(handle, rank): what its call was, in the round that has just failed."""

    def _lock(self, offset: int) -> None:
        """Holds byte `offset + rank` of the file for as long as this process lives, or until `close`."""
        wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset + self.rank, 1, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, wanted)
        except (BlockingIOError, PermissionError):
            raise joining_failed(self.rank, f"another process is rank {self.rank} already", self.rank) from None

    def _meet(self, deadline_s: float) -> None:
        """Says that this rank is here and waits until all have been, or until a later epoch is wanted."""
        until = time.monotonic() + deadline_s
        with mmap.mmap(self._fd, CONTROL_BYTES) as control, memoryview(control) as plain, plain.cast("Q") as epochs:
            epochs[self.rank] = self.epoch + 1
            self._arrive(self.handle)
            while absent := {r: epochs[r] - 1 for r in range(self.size) if not self._here(self.handle, r)}:
                if epochs[WANTED_AT // 8] > self.epoch + 1:
                    raise joining_failed(self.rank, f"epoch {epochs[WANTED_AT // 8] - 1} is wanted, not {self.epoch}")
                if max(absent.values()) > self.epoch or time.monotonic() >= until:
                    raise self._absence(absent, deadline_s)
                time.sleep(_POLL_S)

    def _absence(self, absent: dict[int, int], deadline_s: float) -> CommError:
        """The error that names those who are not here, and the epochs that they have come to instead."""
        named = [f"rank {rank}" + (f" (of epoch {epoch})" if epoch >= 0 else "") for rank, epoch in absent.items()]
        newer = next((rank for rank, epoch in absent.items() if epoch > self.epoch), None)
        within = f" within {deadline_s} s" if newer is None else ""
        reason = f"{', '.join(named)} did not come to epoch {self.epoch}{within}"
        return joining_failed(self.rank, reason, next(iter(absent)) if newer is None else newer)

    def say(self, text: str, *, reason: bool = False) -> None:
        """Leaves a text where the others can read it: what this rank asked for, or why it broke the group."""
        self.put(self._text(self.handle, self.rank) + (TEXT_BYTES if reason else 0), packed(text, TEXT_BYTES))

    def said(self, rank: int, *, reason: bool = False) -> str | None:
        """What a rank has left, or None if that is nothing."""
        place = self._text(self.handle, rank) + (TEXT_BYTES if reason else 0)
        return unpacked(bytes(self.memory[place : place + TEXT_BYTES]))

    def put(self, place: int, record: bytes) -> None:
        """Copies bytes into the group's memory."""
        ctypes.memmove(ctypes.addressof(self.memory) + place, record, len(record))

    def fail(self, culprit: int, reason: str) -> tuple[int, str]:
        """Breaks the group for all ranks. Returns (culprit, reason) of whoever was first."""
        self.say(f"{culprit} {reason}", reason=True)
        return self.account(self._fail(self.handle))

    def account(self, breaker: int) -> tuple[int, str]:
        """(culprit, reason) as the rank that broke the group has left them; the culprit is -1 where no rank did."""
        if breaker >= self.size:
            return -1, "the group was ended from outside"
        culprit, _, reason = (self.said(breaker, reason=True) or f"{breaker} rank {breaker} broke the group").partition(" ")
        return int(culprit), reason

    def close(self) -> None:
        """Leaves the group and unmaps its memory, once. Peers that still need this rank are told."""
        fd, self._fd = self._fd, -1
        if self.handle is not None:
            handle, self.handle = self.handle, None
            self._leave(handle)
            self._close(handle)
        if fd >= 0:
            os.close(fd)


def end_group(fd: int, epoch: int, size: int) -> None:
    """Breaks the group of `epoch` for its `size` ranks, by who is none of them: those who wait in it give up at once, not only
    when they next look whether their peers live. Nothing happens where none has come to it yet: `memory.want` is for those."""
    length = native.function("sw_shm_bytes", native.NUMBER, native.WHOLE, native.WHOLE, result=native.WHOLE)
    if os.fstat(fd).st_size < begins(epoch) + length(size, SLOT_BYTES, LETTER_BYTES):
        return
    end = native.function("sw_shm_end", native.NUMBER, native.WHOLE, native.NUMBER, native.WHOLE, native.WHOLE)
    end(fd, begins(epoch), size, SLOT_BYTES, LETTER_BYTES)


def packed(text: str, limit: int) -> bytes:
    """A text with its length and checksum before it, in `limit` bytes at most."""
    body = text.encode()[: limit - 8]
    return struct.pack("<II", len(body), crc32(body)) + body


def unpacked(record: bytes) -> str | None:
    """The text in a record; None where there is none, or not all of it yet."""
    length, checksum = struct.unpack_from("<II", record)
    body = record[8 : 8 + length]
    return body.decode(errors="replace") if length and crc32(body) == checksum else None


def joining_failed(rank: int, reason: str, culprit: int | None = None) -> CommError:
    """The error of a rank that could not join its group."""
    return CommError(f"{_SITE} on rank {rank}: {reason}", rank=rank, site=_SITE, culprit=culprit)
