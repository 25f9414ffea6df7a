"""One rank's end of an NCCL group: one GPU for each rank. Stream-ordered: no call but `barrier` waits on the host.

A call is queued behind what the current stream holds, and `wait` makes the current stream wait for it, so the result may
be used at once by anything queued later. NCCL sums in its own order and in the tensor's dtype: the same bits on every
rank, but not those of other backends. A peer that is late or dead is noticed by torch's watchdog thread at the deadline,
which by default ends the process, as no kernel that waits for it can be called back.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroupNCCL, Store, Work  # type: ignore[attr-defined]

from shardwise.comm.asking import Asking
from shardwise.comm.asks import Ask, failure

_POLL_S = 0.0005


def open_group(store: Store, rank: int, size: int, deadline_s: float) -> Any:
    """A process group with our deadline on every collective."""
    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=deadline_s)
    return ProcessGroupNCCL(store, rank, size, options)


class NcclComm(Asking):
    """Equal ranges use NCCL's own gather and scatter; uneven ones a round of messages, and for a sum a whole all_reduce."""

    def __init__(self, group: Any, device: torch.device, *, deadline_s: float, epoch: int) -> None:
        super().__init__(group.rank(), group.size(), epoch)
        self.deadline_s = deadline_s
        self.device = device
        self._group: Any = group  # a ProcessGroupNCCL, whose stubs know few of its methods; None once it is broken

    def carry_out(self, ask: Ask) -> Tensor:
        """Queues one call on the current stream of this rank's GPU."""
        group = self._group
        if group is None:
            raise failure(ask, "this rank has left the group", self.rank)
        if ask.op != "barrier" and ask.x.device != self.device:
            raise ValueError(f"{ask.op} at {ask.site!r} on rank {self.rank}: x is on {ask.x.device}, not {self.device}")
        try:
            with torch.no_grad():
                return self._queue(group, ask)
        except RuntimeError as error:
            self._group = None
            raise failure(ask, str(error)) from None

    def close(self) -> None:
        """Later calls raise. The communicator goes with its last reference; nothing is waited for."""
        self._group = None

    def _queue(self, group: Any, ask: Ask) -> Tensor:
        match ask.op:
            case "all_reduce":
                return self._all_reduce(group, ask.x)
            case "all_gather":
                return self._all_gather(group, ask)
            case "reduce_scatter":
                return self._reduce_scatter(group, ask)
            case "all_to_all":
                result = ask.x.new_empty(ask.result)
                sent = ask.x.detach().contiguous().split(ask.send_counts)
                _done(group.alltoall([_bytes(p) for p in result.split(ask.recv_counts)], [_bytes(p) for p in sent]))
                return result
            case "broadcast":
                result = ask.x.detach().clone(memory_format=torch.contiguous_format)
                options = torch.distributed.BroadcastOptions()
                options.rootRank = ask.peer
                _done(group.broadcast([_bytes(result)], options))
                return result
            case "send":
                _done(group.send([_bytes(ask.x.detach().contiguous())], ask.peer, 0))
                return ask.x
            case "recv":
                buffer = ask.x if ask.x.is_contiguous() else torch.empty_like(ask.x).contiguous()
                _done(group.recv([_bytes(buffer)], ask.peer, 0))
                return ask.x if buffer is ask.x else ask.x.copy_(buffer)
            case _:
                self._barrier(group, ask)
                return ask.x

    def _all_reduce(self, group: Any, x: Tensor) -> Tensor:
        if x.dtype == torch.int16:  # unknown to NCCL; the low 16 bits of a wider sum are the same
            return self._all_reduce(group, x.to(torch.int32)).to(torch.int16)
        total = x.detach().clone(memory_format=torch.contiguous_format)
        _done(group.allreduce([total]))
        return total

    def _all_gather(self, group: Any, ask: Ask) -> Tensor:
        x = ask.x.detach().movedim(ask.dim, 0).contiguous()
        whole = x.new_empty((sum(ask.recv_counts), *x.shape[1:]))
        if len(set(ask.recv_counts)) == 1:
            _done(group._allgather_base(_bytes(whole), _bytes(x)))
        else:
            _done(group.alltoall([_bytes(p) for p in whole.split(ask.recv_counts)], [_bytes(x)] * self.size))
        return whole.movedim(0, ask.dim).contiguous()

    def _reduce_scatter(self, group: Any, ask: Ask) -> Tensor:
        if len(set(ask.send_counts)) > 1 or ask.x.dtype == torch.int16:
            start = sum(ask.send_counts[: self.rank])
            whole = self._all_reduce(group, ask.x)
            return whole.narrow(ask.dim, start, ask.send_counts[self.rank]).contiguous()
        x = ask.x.detach().movedim(ask.dim, 0).contiguous()
        part = x.new_empty((ask.send_counts[self.rank], *x.shape[1:]))
        _done(group._reduce_scatter_base(part, x))
        return part.movedim(0, ask.dim).contiguous()

    def _barrier(self, group: Any, ask: Ask) -> None:
        """The one call that waits on the host, and so can fail with an error of its own."""
        group.allreduce([torch.zeros(1, device=self.device)]).wait()
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))
        deadline = time.monotonic() + self.deadline_s
        while not arrived.query():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all ranks came within {self.deadline_s} s")
            time.sleep(_POLL_S)


def _bytes(x: Tensor) -> Tensor:
    """The same memory as plain bytes: what is only moved need not be a dtype that NCCL knows."""
    return x.as_strided((x.numel(),), (1,)).view(torch.uint8)


def _done(work: Work) -> None:
    work.wait()
