"""One rank's end of a gloo group: processes that talk over TCP. Every collective is messages between pairs of ranks.

Why not gloo's own collectives: they want equal shapes, round a 16-bit sum at every hop, do not say which peer failed, and
a peer that passes another size aborts the process or leaves part of the result unset. Pairs need no padding, move the
fewest bytes, name the peer, and give the same bits as every backend that sums in rank order.

CUDA tensors are staged through host memory, so a call on one waits for its stream.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn
from zlib import crc32

import torch
from torch import Tensor
from torch.distributed import Store, Work  # type: ignore[attr-defined]

from shardwise.comm.asking import Asking
from shardwise.comm.asks import DISAGREE, Ask, failure
from shardwise.comm.stores import appeared, gone
from shardwise.comm.sums import rank_order_sum

DIRECT_BYTES = 1 << 17
"""An all_reduce takes two rounds instead of one where that saves each rank more than this: about what a round costs."""
PATIENCE_S = 0.2
"""How long a rank that failed waits for a peer's account of it. Only ever spent on a group that is broken already."""

_TAGS = (1 << 31) - 2  # gloo's tags are positive and fit 31 bits
_SAID_TAG = 0
_SAID_BYTES = 512

Piece = tuple[int, Tensor]  # a rank, and the contiguous host tensor that goes to it or comes from it


class GlooComm(Asking):
    """Sums are made in rank order: 16-bit floats in float32 and rounded once, all else in its own dtype.

    A message's tag is made from what both ends say it is, so that ranks which disagree never take each other's bytes: they
    fail at the deadline, and then tell each other what they asked for. `checked` exchanges this before each call, at
    the price of one round, and fails at once.
    """

    def __init__(self, group: Any, store: Store, *, deadline_s: float, epoch: int, checked: bool = False) -> None:
        super().__init__(group.rank(), group.size(), epoch)
        self.deadline_s = deadline_s
        self._group: Any = group  # a ProcessGroupGloo, whose stubs know neither send nor recv; None once it is broken
        self._store = store
        self._checked = checked
        self._room = torch.empty(0, dtype=torch.uint8)
        self._broken = ""
        self._culprit: int | None = None

    def carry_out(self, ask: Ask) -> Tensor:
        """Carries out one call within the deadline, or breaks the group."""
        if self._group is None:
            raise failure(ask, self._broken, self._culprit)
        deadline = time.monotonic() + self.deadline_s
        try:
            with torch.no_grad():
                return self._within(ask, deadline)
        except BaseException as error:
            self._break(f"this rank stopped: {type(error).__name__}", self.rank)  # messages may be under way
            raise

    def close(self) -> None:
        """Drops the connections, which peers notice at once."""
        self._break("this rank has left the group", self.rank)

    def _within(self, ask: Ask, deadline: float) -> Tensor:
        x = ask.x.detach().to("cpu").contiguous()
        if self._checked:
            self._compare(ask, deadline)
        if ask.op == "recv":
            self._exchange(ask, [], [(ask.peer, x)], deadline)
            return ask.x if ask.x.data_ptr() == x.data_ptr() else ask.x.copy_(x)
        return self._collective(ask, x, deadline).to(ask.x.device)

    def _collective(self, ask: Ask, x: Tensor, deadline: float) -> Tensor:
        match ask.op:
            case "all_reduce":
                return self._all_reduce(ask, x, deadline)
            case "all_gather":
                return self._all_gather(ask, x, deadline)
            case "reduce_scatter":
                pieces = [piece.contiguous() for piece in x.split(ask.send_counts, ask.dim)]
                return self._scatter_sum(ask, pieces, deadline)
            case "all_to_all":
                result = x.new_empty(ask.result)
                sent, received = x.split(ask.send_counts), result.split(ask.recv_counts)
                received[self.rank].copy_(sent[self.rank])
                self._exchange(ask, self._others(sent), self._others(received), deadline)
                return result
            case "broadcast":
                return self._broadcast(ask, x, deadline)
            case "send":
                self._exchange(ask, [(ask.peer, x)], [], deadline)
                return x
            case _:  # a barrier: a byte to and from everyone
                byte = torch.zeros(1, dtype=torch.uint8)
                everyone = [byte] * self.size
                self._exchange(ask, self._others(everyone), self._others([byte.clone() for _ in everyone]), deadline)
                return ask.x

    def _all_reduce(self, ask: Ask, x: Tensor, deadline: float) -> Tensor:
        """One round of whole tensors, or two of parts: a sum of each rank's part, then a gather of the sums."""
        saved_bytes = x.nbytes * (self.size - 1) * (self.size - 2) // self.size
        if saved_bytes <= DIRECT_BYTES:
            return self._scatter_sum(ask, [x] * self.size, deadline)
        parts = x.view(-1).tensor_split(self.size)
        result = torch.empty_like(x)
        sums = result.view(-1).tensor_split(self.size)
        sums[self.rank].copy_(self._scatter_sum(ask, parts, deadline))
        self._exchange(ask, self._others([sums[self.rank]] * self.size), self._others(sums), deadline)
        return result

    def _scatter_sum(self, ask: Ask, pieces: Sequence[Tensor], deadline: float) -> Tensor:
        """The rank-order sum of the pieces that all ranks have for this one."""
        mine = pieces[self.rank]
        arrived = [mine if rank == self.rank else place for rank, place in enumerate(self._room_for(mine))]
        self._exchange(ask, self._others(pieces), self._others(arrived), deadline)
        return rank_order_sum(arrived)

    def _room_for(self, piece: Tensor) -> list[Tensor]:
        """A place for such a piece from every rank. The memory is kept: new pages cost more than what arrives in them."""
        room_bytes = piece.nbytes * self.size
        if self._room.nbytes < room_bytes:
            self._room = torch.empty(room_bytes, dtype=torch.uint8)
        return list(self._room[:room_bytes].view(piece.dtype).view(self.size, *piece.shape))

    def _all_gather(self, ask: Ask, x: Tensor, deadline: float) -> Tensor:
        result = x.new_empty(ask.result)
        places = result.split(ask.recv_counts, ask.dim)
        # Straight into the result where a rank's part lies in one stretch of it: dim 0, or a single row.
        arrived = [place if place.is_contiguous() else x.new_empty(place.shape) for place in places]
        self._exchange(ask, self._others([x] * self.size), self._others(arrived), deadline)
        for place, piece in zip(places, [*arrived[: self.rank], x, *arrived[self.rank + 1 :]], strict=True):
            if place is not piece:
                place.copy_(piece)
        return result

    def _broadcast(self, ask: Ask, x: Tensor, deadline: float) -> Tensor:
        if self.rank == ask.peer:
            self._exchange(ask, self._others([x] * self.size), [], deadline)
            return x.clone()
        result = torch.empty_like(x)
        self._exchange(ask, [], [(ask.peer, result)], deadline)
        return result

    def _others(self, tensors: Sequence[Tensor]) -> list[Piece]:
        return [(rank, tensor) for rank, tensor in enumerate(tensors) if rank != self.rank]

    def _exchange(self, ask: Ask, sent: list[Piece], received: list[Piece], deadline: float) -> None:
        """One round: all messages of this rank at once. Empty ones are not sent; both ends know that they are."""
        sends = [(peer, piece, _tag(ask.said(self.rank, peer))) for peer, piece in sent if piece.numel()]
        recvs = [(peer, piece, _tag(ask.said(peer, self.rank))) for peer, piece in received if piece.numel()]
        failed = self._round(sends, recvs, deadline)
        if failed:
            self._fail(ask, *failed)

    def _round(
        self, sends: Sequence[tuple[int, Tensor, int]], recvs: Sequence[tuple[int, Tensor, int]], deadline: float
    ) -> tuple[int, str] | None:
        """Posts and waits. Returns the peer that failed and why, with no work left alive: works hold connections open."""
        works: list[tuple[int, Work]] = []
        peer = self.rank
        try:
            # Receives first: a sender whose peer is ready does not have to ask.
            for peer, piece, tag in recvs:
                works.append((peer, self._group.recv([piece.view(-1)], peer, tag)))
            for peer, piece, tag in sends:
                works.append((peer, self._group.send([piece.view(-1)], peer, tag)))
            while works:
                peer, work = works.pop(0)
                work.wait(timedelta(milliseconds=max(1, round((deadline - time.monotonic()) * 1000))))
        except RuntimeError as error:
            works.clear()
            return peer, str(error)
        return None

    def _compare(self, ask: Ask, deadline: float) -> None:
        """Tells each peer of the call what this rank thinks it is, and compares."""
        everyone = [rank for rank in range(self.size) if rank != self.rank]
        peers = [ask.peer] if ask.op in ("send", "recv") else everyone
        arrived = {peer: torch.zeros(_SAID_BYTES, dtype=torch.uint8) for peer in peers}
        sends = [(peer, _text_tensor(ask.said(self.rank, peer)), _SAID_TAG) for peer in peers]
        recvs = [(peer, arrived[peer], _SAID_TAG) for peer in peers]
        failed = self._round(sends, recvs, deadline)
        if failed:
            self._fail(ask, *failed)
        for peer in peers:
            expected = ask.said(peer, self.rank)
            if not torch.equal(arrived[peer], _text_tensor(expected)):
                said = bytes(arrived[peer].tolist()).rstrip(b"\0").decode(errors="replace").partition(" ")[2]
                self._disagree(ask, peer, f"{DISAGREE}: rank {self.rank}: {expected}; rank {peer}: {said}")

    def _fail(self, ask: Ask, peer: int, error: str) -> NoReturn:
        """Breaks the group, after asking the peer at fault whether it was another."""
        timed_out = "imed out" in error
        reason = f"rank {peer} did not come within {self.deadline_s} s" if timed_out else f"lost rank {peer}: {_brief(error)}"
        self._publish(peer, ask, "")
        culprit, asked, disagreement = self._account_of(peer)
        if disagreement:
            reason = disagreement
        elif asked and asked != str(ask):
            reason = f"{DISAGREE}: rank {self.rank}: {ask}; rank {peer}: {asked}"
        elif culprit not in (peer, self.rank):
            reason, peer = f"rank {peer} lost rank {culprit}", culprit
        self._break(reason, peer)
        raise failure(ask, reason, peer)

    def _disagree(self, ask: Ask, peer: int, reason: str) -> NoReturn:
        self._publish(peer, ask, reason)
        self._break(reason, peer)
        raise failure(ask, reason, peer)

    def _publish(self, culprit: int, ask: Ask, disagreement: str) -> None:
        """Leaves this rank's account of the failure where the others can read it."""
        # The store may be gone, with the rank that kept it or once all had met; the account is a courtesy.
        if gone(self._store):
            return
        with suppress(RuntimeError):
            self._store.set_timeout(timedelta(seconds=PATIENCE_S))
            self._store.set(f"failed/{self.rank}", f"{culprit}\n{ask}\n{disagreement}")

    def _account_of(self, peer: int) -> tuple[int, str, str]:
        """Whom a peer blames, what it asked for, and how it disagreed; (peer, "", "") if it says nothing."""
        if gone(self._store):
            return peer, "", ""
        with suppress(RuntimeError):
            if not appeared(self._store, [f"failed/{peer}"], PATIENCE_S):
                return peer, "", ""
            culprit, asked, disagreement = self._store.get(f"failed/{peer}").decode().split("\n", 2)
            return int(culprit), asked, disagreement
        return peer, "", ""

    def _break(self, reason: str, culprit: int) -> None:
        if self._group is not None:
            self._broken, self._culprit = reason, culprit
            self._group = None  # drops the sockets; gloo's `abort` is for the whole process, its `shutdown` may wait


def _tag(said: str) -> int:
    return crc32(said.encode()) % _TAGS + 1


def _brief(error: str) -> str:
    """Gloo's message without its source line and its advice."""
    return error.rpartition("] ")[2].partition(". ")[0]


def _text_tensor(said: str) -> Tensor:
    """The text with its checksum before it, as a tensor of fixed size: what is cut off still counts."""
    text = f"{crc32(said.encode()):08x} {said}".encode()[:_SAID_BYTES]
    return torch.tensor(list(text.ljust(_SAID_BYTES, b"\0")), dtype=torch.uint8)
