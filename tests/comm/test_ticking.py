"""A backend with ticks does what the backend does, and ticks around each call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

import shardwise
from shardwise.comm.protocol import Comm
from shardwise.comm.solo import Solo
from shardwise.comm.threads import run
from shardwise.comm.ticking import PLACES, Silent, Ticking, place_name, place_of
from shardwise.errors import CommError
from tests.comm.comm_cases import Case, cases, check

X = torch.ones(2, 3)


class Noted(Silent):
    """Ticks as a list."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def enter(self, place: int) -> None:
        self.said.append(place_name(place))

    def leave(self) -> None:
        self.said.append("left")

    def left(self) -> None:
        self.said.append("gone")


@settings(max_examples=60, deadline=None, database=None)
@given(cases(1))
def test_contract(case: Case) -> None:
    check(Ticking(Solo(), Silent()), case)


@settings(max_examples=25, deadline=None, database=None)
@given(cases(2))
def test_contract_of_two(case: Case) -> None:
    run(2, lambda comm: check(Ticking(comm, Silent()), case), deadline_s=30)


def test_every_call_ticks() -> None:
    def body(comm: Comm) -> list[str]:
        ticks = Noted()
        on: Comm = Ticking(comm, ticks)
        assert (on.rank, on.size, on.epoch) == (comm.rank, 2, 0)
        ranges = [range(3), range(3, 6)]
        on.all_reduce(X, site="mlp_down")
        on.all_reduce(X, site="new")
        on.all_gather(X, ranges, site="logprobs")
        on.reduce_scatter(X, [range(1), range(1, 3)], site="s")
        on.all_to_all(X, [1, 1], [1, 1], site="s")
        on.broadcast(X, 0, site="draw_decided")
        if on.rank:
            on.recv(torch.empty(2, 3), 0, site="s")
        else:
            on.send(X, 1, site="s")
        on.barrier(site="loaded")
        assert on.enter(X, site="mlp_in") is X
        on.close()
        return ticks.said

    calls = ["all_reduce of mlp_down", "all_reduce", "all_gather of logprobs", "reduce_scatter", "all_to_all"]
    calls += ["broadcast of draw_decided", "send", "barrier of loaded"]
    first, second = run(2, body)
    assert first == [said for call in calls for said in (call, "left")] + ["gone"]
    assert second == [said.replace("send", "recv") for said in first]


def test_what_fails_is_not_left() -> None:
    ticks, comm = Noted(), Solo()
    on = Ticking(comm, ticks)
    comm.close()
    with pytest.raises(CommError):
        on.all_reduce(X, site="mlp_down")
    assert ticks.said == ["all_reduce of mlp_down"]


def test_numbers_are_of_one_place_each() -> None:
    assert [place_of(op, site) for op, site in PLACES] == list(range(len(PLACES)))
    assert place_of("all_reduce", "nowhere") == place_of("all_reduce", "")
    assert place_name(len(PLACES)) == "collective"


def sites() -> Iterator[tuple[str, str]]:
    """(file, site) of each literal site that model and ranks call with, or hand to what does."""
    called = {"whole", "gather", "sum", "decide", "all_reduce", "all_gather", "broadcast", "barrier"}
    for folder in ("nn", "runtime"):
        for path in (Path(shardwise.__file__).parent / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in called:
                    texts = [*node.args[1:], *(word.value for word in node.keywords if word.arg == "site")]
                    yield from ((path.name, t.value) for t in texts if isinstance(t, ast.Constant) and isinstance(t.value, str))


def test_every_site_has_a_number() -> None:
    found = set(sites())
    assert len(found) >= 7
    assert [(file, site) for file, site in found if site not in {site for _, site in PLACES}] == []
