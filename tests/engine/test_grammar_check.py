"""What has passed the check of grammars lately is remembered, within bounds. (What passes, and what not: test_grammar.py.)"""

from __future__ import annotations

import os
import signal

import pytest

from shardwise.engine.grammar_check import GrammarCheck, size
from shardwise.engine.hub import bundled
from shardwise.errors import RequestError
from shardwise.sched.structured import StructuredOutputs

VOCAB = 2048


def test_what_has_passed_is_kept_within_bytes() -> None:
    check = GrammarCheck(bundled(), VOCAB, most_bytes=10_000)
    large = [StructuredOutputs(choice=[f"{n}" + "é" * 3_900]) for n in range(4)]
    for each in (*large, StructuredOutputs(regex="a"), large[-1]):
        check(each)
        assert size(each) <= check.kept_bytes <= 10_000
    assert 3_900 < size(large[0]) < 5_000 < check.kept_bytes, "nothing is thrown away before it must be"
    assert check.pid is not None
    os.kill(check.pid, signal.SIGSTOP)  # it answers nobody
    check(large[-1])  # what has passed lately passes at once
    os.kill(check.pid, signal.SIGCONT)
    with pytest.raises(RequestError):
        check(StructuredOutputs(regex="(b"))
    check(StructuredOutputs(grammar='start: "' + "x" * 20_000 + '"'))
    assert check.kept_bytes > 20_000, "one is kept, however large"
