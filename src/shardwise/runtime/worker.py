"""One rank as a process: `python -m shardwise.runtime.worker --fd N --shared M`, on one end of a socket pair.

It holds weights and caches and nothing that could not be computed again. It does not die of its peers: what its group fails of
it reports, and waits to be told of another one. When the other end of its channel closes, it ends at once.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import queue
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardwise import env
from shardwise.errors import CommError, ShardwiseError, UserError
from shardwise.runtime import heap, wire
from shardwise.telemetry import log

if TYPE_CHECKING:
    from shardwise.comm.protocol import Comm
    from shardwise.runtime.load import Progress
    from shardwise.runtime.recording import Recording
    from shardwise.runtime.runner import Runner
    from shardwise.sched.step import Step


def main() -> None:
    """Reads from the descriptor it was given which group it is to join, then computes steps; until the other end closes."""
    parser = argparse.ArgumentParser(description="one rank of a shardwise engine; started by the engine, not by hand")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--shared", type=int, required=True)
    args = parser.parse_args()
    sock = socket.socket(fileno=args.fd)
    # The engine decides when ranks end; a Ctrl-C at the terminal is its to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log.begin(env.log_format())
    channel = wire.Channel(sock)
    inbox: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, inbox), daemon=True, name="listen").start()
    try:
        Member(channel, inbox, args.shared).run()
    except BaseException as error:
        if env.debug():
            log.trace(error)
        _report(channel, error, -1)
        # Not sys.exit: destroying a process group whose peers are gone can wait for them.
        os._exit(1)


def _listen(channel: wire.Channel, inbox: queue.SimpleQueue[wire.Message]) -> None:
    """Ends the process when the engine is gone, whatever the main thread is waiting for."""
    while (message := channel.receive()) is not None:
        inbox.put(message)
    os._exit(0)


class Member:
    """A rank process in one group after the other: what it keeps from each to the next."""

    def __init__(self, channel: wire.Channel, inbox: queue.SimpleQueue[wire.Message], shared: int) -> None:
        self._channel, self._inbox, self._shared = channel, inbox, shared

    def run(self) -> None:
        """Never returns: the listening thread ends the process."""
        import_torch()
        start = self._next_start()
        while True:
            try:
                start = self._live(start)
                continue
            except Exception as error:
                # By now this rank has left its group, so its peers do not wait for what it says here.
                if env.debug():
                    log.trace(error)
                _report(self._channel, error, start.epoch)
            start = self._next_start()

    def _next_start(self) -> wire.Start:
        """The next group, dropping what was still said of the last one."""
        while not isinstance(message := self._inbox.get(), wire.Start):
            pass
        return message

    def _live(self, start: wire.Start) -> wire.Start:
        """Joins a group, loads, and computes its steps until it is told of the next group, which it returns."""
        with contextlib.closing(joined(start, self._shared)) as comm:
            runner = build(start, comm, lambda count: self._channel.send(wire.Loading(count, start.epoch)))
            self._channel.send(ready(runner, start.epoch))
            return self._steps(start, runner)

    def _steps(self, start: wire.Start, runner: Runner) -> wire.Start:
        busy_s = 0.0
        # What does the steps: the runner, or what records it.
        on: Runner | Recording = runner
        recording: Recording | None = None
        while True:
            message = self._inbox.get()
            began = time.perf_counter()
            if isinstance(message, wire.Forward):
                on.forward(message.step)
                busy_s = time.perf_counter() - began
            elif isinstance(message, wire.Draws):
                runner.early(message.draws)
            elif isinstance(message, wire.Logits):
                for rows in rows_of(runner, message.step):
                    self._channel.send(rows)
            elif isinstance(message, wire.Sample):
                *early, last = wire.in_messages(on.sample(message.number, message.draws))
                for results in early:
                    self._channel.send(wire.Results(results, start.epoch))
                self._channel.send(wire.Done(message.number, last, busy_s + time.perf_counter() - began, start.epoch))
            elif isinstance(message, wire.Record):
                from shardwise.runtime.recording import Recording

                on = recording = Recording(runner, start.rank, message)
            elif isinstance(message, wire.Start):
                return message
            else:
                assert isinstance(message, wire.EndRecord)
            if recording is not None and (recording.full or isinstance(message, wire.EndRecord)):
                self._channel.send(recording.end())
                on, recording = runner, None


def rows_of(runner: Runner, step: Step) -> Iterator[wire.Rows]:
    """The rows of a step's logits as messages; every rank takes part to the end, and only the lead rank has any to send."""
    vocabulary = runner.parts.vocabulary
    for piece in runner.logits_pieces(step, wire.piece_rows(vocabulary)):
        if runner.parts.lead:
            yield wire.Rows(vocabulary, piece.cpu().numpy().astype("<f4", copy=False).tobytes())


def ready(runner: Runner, epoch: int = 0) -> wire.Ready:
    """What the rank holds, measured on its live storages, and the most memory that the process has had resident."""
    held = runner.arena.nbytes, runner.cache.arena.nbytes, peak_bytes()
    return wire.Ready(*held, os.getpid(), socket.gethostname(), epoch)


def peak_bytes() -> int:
    """The most memory that this process has had resident. Not getrusage's: that begins with what its parent had."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def import_torch() -> None:
    """And what needs it. That takes longer than all else of a start, and so goes before it is known what to compute."""
    # Nothing that an import makes is garbage: to look for it is a tenth of the time.
    gc.disable()
    import shardwise.runtime.opening  # noqa: F401

    gc.freeze()
    gc.enable()


def joined(start: wire.Start, shared: int) -> Comm:
    """This rank's end of its group, on its own processors and with its number of threads."""
    import torch

    from shardwise.runtime.opening import join

    keep_to(start)
    torch.set_num_threads(start.threads)
    return join(start, shared)


def build(start: wire.Start, comm: Comm, progress: Progress) -> Runner:
    """Loads what the rank is to hold."""
    from shardwise.runtime.opening import open_runner

    if start.memory and start.device == "cpu":
        # The kernel keeps what was planned: memory of this process's own, mapped files not counted.
        resource.setrlimit(resource.RLIMIT_DATA, (start.memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    runner = open_runner(start, comm, progress)
    heap.keep()  # not what loading has freed
    return runner


def keep_to(start: wire.Start) -> None:
    """Has this thread, and those that it starts, run on the rank's own processors: before it writes to its weights and cache,
    which then are in the memory next to them."""
    if start.cores:
        os.sched_setaffinity(0, start.cores[start.rank])


def _report(channel: wire.Channel, error: BaseException, epoch: int) -> None:
    """Tells the engine why the group of `epoch` is no more, if it still listens."""
    message = str(error) if isinstance(error, ShardwiseError) else f"{type(error).__name__}: {error}"
    culprit = error.culprit if isinstance(error, CommError) else None
    failed = wire.Failed(message, isinstance(error, UserError), culprit, isinstance(error, CommError), epoch)
    # Where the engine is gone, or is closing, what a step in flight ran into is of no interest to anybody.
    with contextlib.suppress(OSError):
        channel.send(failed)


if __name__ == "__main__":
    main()
