"""One request through the front: deltas that add up, ends that reach the engine; and the bar that counts them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardwise.engine.fake import FakeEngine
from shardwise.engine.front import Front, sampling_defaults
from shardwise.engine.progress import progress
from shardwise.errors import CheckpointError, ShardwiseError
from shardwise.sched.request import SamplingParams

ENDLESS = SamplingParams(max_tokens=None, ignore_eos=True)
Make = Callable[..., FakeEngine]


def test_a_stream_adds_up(fake: Make):
    front = Front(fake())
    outputs = list(front.stream(front.prompt("Once"), SamplingParams(max_tokens=40, ignore_eos=True)))
    ids = [token for output in outputs for token in output.outputs[0].token_ids]
    assert len(ids) == 40 and outputs[-1].finished and outputs[-1].outputs[0].finish_reason == "length"
    whole = front.tokenizer.decode([*outputs[0].prompt_token_ids, *ids])
    assert whole == "Once" + "".join(output.outputs[0].text for output in outputs)


def test_closing_a_stream_aborts(fake: Make):
    engine = fake(held=True)
    engine.allow(1)
    front = Front(engine)
    stream = front.stream(front.prompt("Once"), ENDLESS)
    next(stream)
    stream.close()
    assert engine.aborted == [1] and engine.running == 0


def test_a_stream_that_fails_says_why(fake: Make):
    front = Front(fake(lambda _prompt, _choice, place: -1 if place == 2 else 9))
    stream = front.stream(front.prompt("Once"), ENDLESS)
    with pytest.raises(ShardwiseError, match=r"^no finite logits at token 2$"):
        list(stream)


def test_defaults_of_a_checkpoint(tmp_path: Path):
    assert sampling_defaults(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(
        '{"temperature": 0.5, "top_k": 7, "repetition_penalty": 1.1, "max_length": 5}'
    )
    assert sampling_defaults(tmp_path) == {"temperature": 0.5, "top_k": 7, "repetition_penalty": 1.1}
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.5}')
    assert sampling_defaults(tmp_path) == {"temperature": 0.0}
    (tmp_path / "generation_config.json").write_text('{"top_p": 2}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: top_p is 2"):
        sampling_defaults(tmp_path)


def test_a_bar_counts_even_where_none_is_shown():
    with progress(3, shows=False) as bar:
        bar.add(5)
        bar.add(2, done=True)
    assert (bar.tokens, bar.done) == (7, 1)


def test_one_bar_at_a_time_on_a_terminal():
    code = (
        "from shardwise.engine.progress import progress\n"
        "with progress(3) as bar, progress(4) as other:\n"
        "    other.add(1, done=True)\n    bar.add(5, done=True); bar.add(2, done=True); bar.add(1, done=True)\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    ) as p:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert p.returncode == 0 and b"3/3" in shown and b"tok/s" in shown and b"/4" not in shown
