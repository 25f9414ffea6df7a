"""A rank that records itself: the same results, a trace of whole steps, its memory given back, and errors that are told."""

from __future__ import annotations

import gc
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile, record_function

from shardwise.runtime import wire
from shardwise.runtime.recording import Recording, written
from shardwise.sched.step import Result
from tests.group import Group, even, greedy, layout_of


@pytest.fixture
def group(checkpoint: Callable[[str], Path]) -> Iterator[Group]:
    with Group(layout_of(checkpoint("llama"), even(1)), checkpoint("llama")) as made:
        yield made


def steps(group: Group, on: Recording | None, count: int) -> list[tuple[Result, ...]]:
    """The results of so many steps of a new sequence."""
    runner = on or group.runners[0]
    sequence = group.request()
    sequence.tokens[:] = [3, 14, 15]
    found = []
    for _ in range(count):
        step = group.step(sequence.take(drawn=True))
        runner.forward(step)
        found.append(runner.sample(step.number, [greedy()]))
        sequence.tokens.append(9)
    return found


def test_a_recording_changes_nothing_and_holds_whole_steps(group: Group, tmp_path: Path):
    plain = steps(group, None, 3)
    recording = Recording(group.runners[0], 5, wire.Record(str(tmp_path), "now", 3))
    # Of a step that is under way when it is ordered, nothing is recorded.
    sequence = group.request()
    sequence.tokens[:] = [1, 2]
    early = group.step(sequence.take(drawn=True))
    group.runners[0].forward(early)
    recording.sample(early.number, [greedy()])
    assert recording.steps == 0
    assert steps(group, recording, 3) == plain and recording.full
    told = recording.end()
    path = tmp_path / "rank5-now.trace.json"
    assert told == wire.Recorded(str(path), path.stat().st_size, 3)
    names = [event.get("name") for event in json.loads(path.read_bytes())["traceEvents"]]
    ours = [name for name in names if name and name.startswith("step ")]
    assert ours == [f"step {n} {part}" for n in range(5, 8) for part in ("forward", "sample")] and "aten::embedding" in names
    assert not [each for each in gc.get_objects() if type(each) is profile], "its memory is given back"


def test_what_cannot_be_written_is_told(group: Group, tmp_path: Path):
    recording = Recording(group.runners[0], 0, wire.Record(str(tmp_path / "gone"), "now", 9))
    steps(group, recording, 2)
    told = recording.end()
    assert (told.path, told.bytes, told.steps) == ("", 0, 2) and told.error is not None
    assert f"{tmp_path}/gone/rank0-now.trace.json could not be written" in told.error
    assert Recording(group.runners[0], 0, wire.Record(str(tmp_path), "now", 9)).end() == wire.Recorded("", 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_large_trace_is_compressed(tmp_path: Path):
    with profile(activities=[ProfilerActivity.CPU]) as done, record_function("a name of ours"):
        pass
    path = written(done, tmp_path / "a.json", large_bytes=1)
    assert [path] == list(tmp_path.iterdir()) == [tmp_path / "a.json.gz"]
    assert "a name of ours" in [event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
