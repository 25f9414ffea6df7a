"""The checker finds what is planted: each way in which a stream can be wrong, by its class and its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwise.chaos.heard import End, Heard, pause, told
from shardwise.chaos.judge import Verdict, difference, judge
from tests.chaos.streams import WORDS, chunk, encoded, good, heard, usage

ERROR = {"error": {"message": "the engine is lost", "code": "engine_lost"}}


def judged(got: Heard, choices: int = 1, *, exact: bool = True) -> Verdict:
    return judge(got, told(got), told(heard(good(choices))), exact=exact)


def edited(edit: Callable[[list[Any]], object], choices: int = 1) -> list[Any]:
    events = good(choices)
    edit(events)
    return events


def counted(events: list[Any], written: int) -> None:
    events[-2] = usage(written)


def missing(events: list[Any]) -> None:
    del events[3]
    counted(events, 7)


def doubled(events: list[Any]) -> None:
    events.insert(3, events[3])
    counted(events, 9)


def swapped(events: list[Any]) -> None:
    events[2], events[3] = events[3], events[2]


def shortened(events: list[Any]) -> None:
    events[5:8] = [chunk(WORDS[5:6], 0, "stop")]
    counted(events, 6)


def extended(events: list[Any]) -> None:
    events.insert(3, chunk([(99, " x")]))
    counted(events, 9)


def without_ids(text: str) -> Callable[[list[Any]], None]:
    def edit(events: list[Any]) -> None:
        events[4]["choices"][0].update(text=text, token_ids=[15])

    return edit


PLANTED: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "a missing token": (missing, "token 3 is missing"),
    "a doubled token": (doubled, "token 3 comes twice"),
    "swapped tokens": (swapped, "tokens 2 and 3 are swapped"),
    "another token": (lambda e: e.__setitem__(3, chunk([(77, " time")])), "token 3 is 77, not 14"),
    "a token too many": (extended, "choice 0: token 3 is 99"),
    "an end too early": (shortened, "2 tokens are missing at the end"),
    "another text": (without_ids(" -"), "another text from character 17 on"),
    "a text left out": (without_ids(""), "another text from character 17 on"),
    "cut UTF-8": (lambda e: e.__setitem__(4, encoded(e[4]).replace("—".encode(), "—".encode()[:2])), "invalid UTF-8: byte"),
    "half a surrogate": (lambda e: e.__setitem__(4, encoded(e[4]).replace("—".encode(), b"\\ud83d")), "surrogate"),
    "a replacement character": (without_ids(" \ufffd"), "another text"),
    "wrong usage": (lambda e: counted(e, 7), "usage (4, 7, 11), not (4, 8, 12)"),
    "no usage": (lambda e: e.pop(-2), "0 times usage"),
    "usage twice": (lambda e: e.insert(-1, e[-2]), "2 times usage"),
    "two finish reasons": (lambda e: e.insert(-2, chunk([], 0, "stop")), "second finish reason"),
    "two [DONE]": (lambda e: e.append("[DONE]"), "[DONE] comes twice"),
    "tokens after the finish": (lambda e: e.insert(-2, chunk([(19, "!")])), "goes on after its finish"),
    "tokens after [DONE]": (lambda e: e.append(chunk([(19, "!")])), "an event comes after [DONE]"),
    "no finish reason": (lambda e: e.__setitem__(7, chunk(WORDS[7:])), "an error was swallowed"),
    "an error swallowed": (lambda e: e.__delitem__(slice(4, 9)), "an error was swallowed"),
    "another finish reason": (lambda e: e.__setitem__(7, chunk(WORDS[7:], 0, "length")), "finish reason 'length', not 'stop'"),
    "tokens after an error": (lambda e: e.insert(4, ERROR), "an event comes after an error"),
    "two errors": (lambda e: e.__setitem__(slice(4, None), [ERROR, ERROR, "[DONE]"]), "an error comes twice"),
    "a stranger's choice": (lambda e: e.insert(4, chunk([(19, "!")], 5)), "a choice 5, which nobody asked for"),
    "a stranger's stream": (lambda e: e.__setitem__(4, {**e[4], "id": "cmpl-2"}), "the id changes"),
    "an event cut": (lambda e: e.__setitem__(4, encoded(e[4])[:30] + b"\n\n"), "an event is no JSON"),
    "half an event at the end": (lambda e: e.__setitem__(slice(4, None), [encoded(e[4])[:30]]), "ends within an event"),
    "an event of no object": (lambda e: e.insert(3, "[1]"), "an event is no object"),
    "what is no event": (lambda e: e.insert(3, b"Internal Server Error\n\n"), "not an event"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_corruption_is_found(name: str) -> None:
    edit, words = PLANTED[name]
    verdict = judged(heard(edited(edit)))
    assert verdict.kind == "corrupt" and words in verdict.why, verdict


LATE = {"an error swallowed", "half an event at the end", "two errors"}
"""What only the end of a stream shows, or is none before it."""


@pytest.mark.parametrize("name", sorted(PLANTED.keys() - LATE))
def test_planted_corruption_is_found_in_what_is_lost_or_failed_afterwards(name: str) -> None:
    early = [event for event in edited(PLANTED[name][0])[:6] if event != "[DONE]"]
    for got in (heard(early, "cut"), heard(early, "late"), heard([*early, ERROR, "[DONE]"])):
        kind = judged(got).kind
        assert kind == ("corrupt" if early != good()[:6] else "failed" if ERROR in map(decoded, got.pieces) else "lost"), got


def decoded(piece: tuple[float, bytes]) -> object:
    """The event that a piece is; None where it is spoilt."""
    try:
        return json.loads(piece[1].removeprefix(b"data: "))
    except ValueError:
        return None


def test_a_whole_stream_is_fine() -> None:
    assert judged(heard(good())) == Verdict("fine")
    assert judged(heard(good(3)), 3) == Verdict("fine")


@given(st.lists(st.integers(1, 400), max_size=30), st.booleans())
def test_pieces_are_no_events(cuts: list[int], carriage: bool) -> None:
    """However the bytes are cut, tokens put together, comments between: the same is told."""
    data = b": alive\n\n" + b"".join(map(encoded, good(2)))
    data = data.replace(b"\n", b"\r\n") if carriage else data
    places = sorted({0, len(data), *(place * len(data) // 400 for place in cuts)})
    pieces = tuple((float(a), data[a:b]) for a, b in pairwise(places))
    got = Heard(0.0, 200, pieces, "closed", 1.0)
    assert judged(got, 2) == Verdict("fine")


def test_other_chunks_of_the_same_tokens_are_fine() -> None:
    assert judged(heard([chunk(WORDS[:5]), chunk(WORDS[5:], 0, "stop"), usage(8), "[DONE]"])).kind == "fine"


@pytest.mark.parametrize(
    ("got", "kind", "words"),
    [
        (heard(good()[:5], "cut"), "lost", "the connection broke after 5 events with tokens"),
        (heard([*good()[:5], encoded(good()[5])[:20]], "cut"), "lost", "broke"),
        (heard(good()[:5], "late"), "lost", "no end in time"),
        (heard(good()[:5], "closed"), "lost", "ends without an end"),
        (heard(good()[:-1], "closed"), "lost", "ends without an end"),
        (heard([], "closed"), "lost", "ends without an end"),
        (heard([], "cut", None), "lost", "before its headers"),
        (heard([], "late", None), "lost", "before its headers"),
        (heard([], "unreachable", None), "failed", "no connection"),
        (heard([*good()[:5], ERROR, "[DONE]"]), "failed", "the engine is lost"),
        (heard([*good()[:5], ERROR]), "failed", "the engine is lost"),
        (heard([json.dumps(ERROR).encode()], status=503), "failed", "503: the engine is lost"),
        (heard([b"<html>"], status=502), "failed", "502"),
        (heard([*good()[:5], chunk([], 0, "error"), "[DONE]"]), "failed", "finish reason error"),
    ],
)  # fmt: skip
def test_classes(got: Heard, kind: End, words: str) -> None:
    verdict = judged(got)
    assert verdict.kind == kind and words in verdict.why, verdict


def test_one_choice_of_two_without_an_end() -> None:
    events = [event for event in good(2) if event == "[DONE]" or not event["choices"] or event["choices"][0]["index"] == 0]
    assert "choice 1: 8 tokens are missing" in judged(heard(events), 2).why


def test_loosely_only_the_form_counts() -> None:
    other = [chunk([(n, "?")]) for n in range(7)] + [chunk([(7, "!")], 0, "stop"), usage(8), "[DONE]"]
    assert judged(heard(other)).kind == "corrupt"
    assert judged(heard(other), exact=False).kind == "fine"
    assert judged(heard([*other[:-2], usage(7), "[DONE]"]), exact=False).kind == "corrupt"
    assert judged(heard(other[:-1], "cut"), exact=False).kind == "lost"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_difference_is_of_what_differs(truth: list[int], ours: list[int]) -> None:
    assert (difference(ours, truth, complete=True) is None) == (ours == truth)
    assert (difference(ours, truth, complete=False) is None) == (ours == truth[: len(ours)])


@pytest.mark.parametrize(
    ("times", "sent", "fault", "ended", "expected"),
    [
        ([1.0, 1.1, 1.2, 3.2, 3.3], 0.9, 1.15, 3.4, 2.0),  # one was on its way when the fault came
        ([1.0, 3.0], 0.9, 1.5, 3.0, 1.5),
        ([3.0], 2.0, 1.5, 3.0, 1.0),  # asked after the fault
        ([1.0, 1.1], 0.9, 1.5, 1.2, None),  # it had ended before
        ([1.0, 1.1], 0.9, 1.5, 9.0, None),  # nothing came any more
        ([], 0.9, 1.5, 9.0, None),
    ],
)  # fmt: skip
def test_the_pause(times: list[float], sent: float, fault: float, ended: float, expected: float | None) -> None:
    assert pause(times, sent, fault, ended) == (None if expected is None else pytest.approx(expected))
