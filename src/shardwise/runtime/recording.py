"""What a rank does, recorded step by step with torch's profiler and written as a Chrome trace, for Perfetto or chrome://tracing.

Nothing in here ends the rank: whatever goes wrong is told in place of a file. It stands before the runner while it records.
"""

from __future__ import annotations

import ctypes
import gc
import gzip
import os
import resource
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

from shardwise.runtime import wire
from shardwise.runtime.runner import Runner
from shardwise.sched.step import Draw, Result, Step

LARGE_BYTES = 16 * 2**20
"""A trace from here on is compressed, to about a thirtieth; viewers read it all the same."""


class Recording:
    """One recording of one rank. It begins with the next `forward`; `full` once it has all the steps that it may have, or can
    have none."""

    def __init__(self, runner: Runner, rank: int, order: wire.Record) -> None:
        self._runner, self._order = runner, order
        self._path = Path(order.folder) / f"rank{rank}-{order.stamp}.trace.json"
        self._profile: profile | None = None
        self._failed: str | None = None
        self._memory = _Memory()
        self.steps = 0

    @property
    def full(self) -> bool:
        return self._failed is not None or self.steps >= self._order.steps

    def forward(self, step: Step) -> None:
        """As the runner's."""
        if self._profile is None:
            self._begin()
        with record_function(f"step {step.number} forward"):
            self._runner.forward(step)

    def sample(self, number: int, draws: Sequence[Draw]) -> tuple[Result, ...]:
        """As the runner's; a step whose `forward` came before the recording is none of it."""
        with record_function(f"step {number} sample"):
            results = self._runner.sample(number, draws)
        self.steps += self._profile is not None
        return results

    def _begin(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._runner.rank.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._runner.rank.pulse.aside()
        self._memory.lift()
        try:
            started = profile(activities=activities)
            started.start()
            self._profile = started
        except Exception as error:
            self._failed = f"torch's profiler could not begin: {error}"

    def end(self) -> wire.Recorded:
        """Writes what was recorded. Until that is done, the rank does nothing else."""
        done, self._profile = self._profile, None
        self._runner.rank.pulse.aside()
        try:
            if done is None:
                return wire.Recorded("", 0, 0, self._failed)
            done.stop()
            path = written(done, self._path)
            return wire.Recorded(str(path), path.stat().st_size, self.steps)
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            return wire.Recorded("", 0, self.steps, f"{self._path} could not be written: {reason}")
        finally:
            del done
            self._memory.restore()
            self._runner.rank.pulse.idle()


def written(done: profile, path: Path, large_bytes: int = LARGE_BYTES) -> Path:
    """The file that a trace was written to: `path`, or that with .gz behind. OSError, and no file, where it could not be."""
    done.export_chrome_trace(str(path))
    if not path.exists():  # it writes another one, which it gives this name only when it is complete; it says nothing else
        Path(f"{path}.tmp").unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise OSError(None, f"{path.parent} must be a folder that this process may write to, with room ({free >> 20} MiB free)")
    if path.stat().st_size < large_bytes:
        return path
    small = Path(f"{path}.gz")
    try:
        with path.open("rb") as source, gzip.open(small, "wb", compresslevel=4) as target:
            shutil.copyfileobj(source, target, 2**20)
    except OSError:  # no room for both: the large one stays
        small.unlink(missing_ok=True)
        return path
    path.unlink()
    return small


class _Memory:
    """The limit that a CPU rank holds itself to. A recording is not planned for, so it is lifted meanwhile."""

    def __init__(self) -> None:
        self._soft, self._hard = resource.getrlimit(resource.RLIMIT_DATA)
        self._held = 0

    def lift(self) -> None:
        self._held = _data_bytes()
        resource.setrlimit(resource.RLIMIT_DATA, (self._hard, self._hard))

    def restore(self) -> None:
        """Gives back what the recording took. What the allocator keeps all the same stays allowed: else the rank would have
        less than before."""
        gc.collect()  # torch's profile holds itself
        with suppress(OSError, AttributeError):  # glibc alone has it
            ctypes.CDLL(None).malloc_trim(0)
        if self._held and self._soft != resource.RLIM_INFINITY:
            kept = max(0, _data_bytes() - self._held)
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_DATA, (self._soft + kept, self._hard))


def _data_bytes() -> int:
    """What RLIMIT_DATA counts: data and stack, the sixth figure, in pages."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
