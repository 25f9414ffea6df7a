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
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardwise import env
from shardwise.errors import CommError, ShardwiseError, UserError
from shardwise.runtime import heap, wire
from shardwise.telemetry import log

if TYPE_CHECKING:
    from shardwise.comm.protocol import Comm
    from shardwise.runtime.load import Progress
    from shardwise.runtime.opening import Kept
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
        self._everywhere = os.sched_getaffinity(0)

    def run(self) -> None:
        """Never returns: the listening thread ends the process."""
        import_torch()
        from shardwise.runtime.opening import Kept

        self._kept = Kept()
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
        keep_to(start, self._everywhere)
        with contextlib.closing(joined(start, self._shared)) as comm:
            runner = build(start, comm, lambda count: self._channel.send(wire.Loading(count, start.epoch)), self._kept)
            self._channel.send(ready(runner, start.epoch))
            return self._steps(start, runner)

    def _steps(self, start: wire.Start, runner: Runner) -> wire.Start:
        busy_s = 0.0
        recording: Recording | None = None
        try:
            while not isinstance(message := self._inbox.get(), wire.Start):
                began = time.perf_counter()
                # What does the steps: the runner, or what records it.
                on = recording or runner
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

                    recording = Recording(runner, start.rank, message)
                else:
                    assert isinstance(message, wire.EndRecord)
                if recording is not None and (recording.full or isinstance(message, wire.EndRecord)):
                    ended, recording = recording, None
                    self._channel.send(ended.end())
            return message
        finally:
            if recording is not None:
                self._channel.send(recording.end())


def rows_of(runner: Runner, step: Step) -> Iterator[wire.Rows]:
    """The rows of a step's logits as messages; every rank takes part to the end, and only the lead rank has any to send."""
    vocabulary = runner.parts.vocabulary
    for piece in runner.logits_pieces(step, wire.piece_rows(vocabulary)):
        if runner.parts.lead:
            yield wire.Rows(vocabulary, piece.cpu().numpy().astype("<f4", copy=False).tobytes())


def ready(runner: Runner, epoch: int = 0) -> wire.Ready:
    """What the rank holds, measured on its live storages, and the most memory that the process has had resident."""
    held = runner.arena.nbytes, runner.cache.arena.nbytes, peak_bytes()
    return wire.Ready(*held, os.getpid(), socket.gethostname(), epoch, runner.weights.kept_bytes)


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
    """This rank's end of its group, in a process with the rank's number of threads."""
    import torch

    from shardwise.runtime.opening import join

    torch.set_num_threads(start.threads)
    return join(start, shared)


def build(start: wire.Start, comm: Comm, progress: Progress, kept: Kept) -> Runner:
    """Loads what the rank is to hold and does not yet, and holds the process to the memory that was planned."""
    from shardwise.runtime.opening import open_runner

    limited = start.memory is not None and start.device == "cpu"
    if limited:
        # While weights are cut anew the kernel counts the old ones to the last, though less and less of them is there.
        hold_to(None if kept.holds else start.memory)
    runner = open_runner(start, comm, progress, kept)
    if limited:
        hold_to(start.memory)
    heap.keep()  # not what loading has freed
    return runner


def hold_to(limit: int | None) -> None:
    """Has the kernel keep this process to so much memory of its own, mapped files not counted; to no more than others with
    None."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard if limit is None else limit, hard))


def keep_to(start: wire.Start, everywhere: Collection[int] = ()) -> None:
    """Has this thread, and those that it starts, run on the rank's own processors: before it writes to its weights and cache,
    which then are in the memory next to them. Those that it started for an earlier group follow. `everywhere`: where it may run
    if it has none of its own, by default where it does."""
    own = set(start.cores[start.rank] if start.cores else everywhere)
    if not own or own == os.sched_getaffinity(0):
        return
    others = {thread.native_id for thread in threading.enumerate() if thread is not threading.current_thread()}
    for thread in {int(task.name) for task in Path("/proc/self/task").iterdir()} - others:
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(thread, own)


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
