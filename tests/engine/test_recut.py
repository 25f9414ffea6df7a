"""The same model on other ranks, as numbers: what it may take, what it refuses, and that it travels."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from shardwise.engine.bridge import Boot
from shardwise.engine.memory import Demand
from shardwise.engine.setup import Given, Options, Setup, recut, resolve
from shardwise.errors import CapacityError, LayoutError, UserError
from shardwise.spec.layout import PAGE_TOKENS

GIB = 2**30


def setup_of(**options: object) -> Setup:
    return resolve(Options("shardling", **{"tp": 2, "device": "cpu", "memory": 2 * GIB, **options}))  # type: ignore[arg-type]


def on(setup: Setup, free: int) -> Setup:
    """The same as if so many bytes had been free at the start."""
    return replace(setup, memory=None, given=replace(setup.given, free=free))


def begun(setup: Setup) -> Setup:
    """A setup that was recut, as one that was not."""
    return replace(setup, given=replace(setup.given, first=None))


def taken(setup: Setup) -> int:
    """What its ranks take together."""
    layout = setup.layout
    return sum(layout.arena_bytes(rank) + layout.kv_bytes(rank, setup.pages) for rank in range(layout.mesh.size))


def test_the_same_shares_are_the_same_setup():
    setup = setup_of()
    assert begun(recut(setup, (1, 1))) == setup


@pytest.mark.parametrize("shares", [(1,), (1, 1, 1), (3, 1), (1, 2, 1)])
def test_any_number_and_proportion(shares: tuple[float, ...]):
    setup = setup_of()
    new = recut(setup, shares)
    assert (new.layout.mesh.tp, new.layout.shares.attention) == (len(shares), shares)
    assert new.layout.model is setup.layout.model and new.context <= setup.context
    assert new.layout.activations == setup.layout.activations
    assert Boot.of(new).setup() == new, "it travels"
    assert begun(recut(new, (1, 1))) == setup, "and is taken back"


@pytest.mark.parametrize(
    ("shares", "error", "said"),
    [
        ((), UserError, "give one for each rank"),
        ((1,) * 99, LayoutError, "the largest that works is -tp"),
        ((1, 0), LayoutError, "leave a device out rather than give it 0"),
        ((1, float("nan")), LayoutError, "positive and finite"),
    ],
)
def test_what_cannot_be_cut_says_what_can(shares: tuple[float, ...], error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        recut(setup_of(), shares)


def test_what_the_ranks_hold_is_theirs_again_and_no_more():
    setup = setup_of(tp=4, max_model_len=512)
    plenty = on(setup, 64 * GIB)
    assert recut(plenty, (1,) * 3).context == 512
    # Room for four ranks with these pages, all together, and little more: whatever three of them take is within it.
    demand = Demand(setup.layout, "cpu", None, None, setup.limits.tokens, setup.limits.sequences)
    kept = (setup.pages[0] - 1) * PAGE_TOKENS
    free = 4 * max(demand.rank_bytes(rank, setup.context, kept) for rank in range(4))
    for ranks in (3, 2, 4):
        new = recut(on(setup, free), (1,) * ranks)
        cut = replace(demand, layout=new.layout, free=free, sequences=new.limits.sequences)
        held = (new.pages[0] - 1) * PAGE_TOKENS
        assert ranks * max(cut.rank_bytes(rank, new.context, held) for rank in range(ranks)) <= free
        assert taken(new) <= free


def test_less_memory_is_fewer_pages_then_fewer_sequences_then_a_shorter_context_then_a_refusal():
    setup = setup_of(tp=4)
    seen = [recut(on(setup, mib * 2**20), (1,) * 3) for mib in (4000, 1400, 1150, 1080, 1040)]
    measures = [(each.context, each.limits.sequences, each.pages[0]) for each in seen]
    assert measures == sorted(measures, reverse=True) and len(set(measures)) > 2
    assert all(each.context <= setup.context for each in seen)
    assert {each.bound for each in seen if each.context < setup.context} <= {"memory"}
    short = seen[-1]
    assert (back := begun(recut(on(short, 64 * GIB), (1,) * 4))).context == setup.context, "all of it comes back"
    assert (back.limits, back.bound) == (setup.limits, setup.bound)
    with pytest.raises(CapacityError, match=r"rank \d of 3 needs .* \(4 ranks serve now\)"):
        recut(on(setup, 500 * 2**20), (1,) * 3)


def test_a_rank_keeps_to_the_memory_that_it_is_held_to():
    setup = setup_of(tp=2, memory=400 * 2**20, max_num_seqs=4)
    new = recut(setup, (1,))
    assert new.memory == setup.memory
    demand = Demand(new.layout, "cpu", new.memory, None, new.limits.tokens, new.limits.sequences)
    assert demand.fits(new.context, (new.pages[0] - 1) * PAGE_TOKENS)


def test_threads_and_processors_are_dealt_anew():
    cpu = min(os.sched_getaffinity(0))
    lists = setup_of(tp=3, cores=f"{cpu}|{cpu}|{cpu}")
    assert lists.cores == ((cpu,),) * 3
    assert recut(lists, (1, 1)).cores == ((cpu,),) * 2, "the first lists"
    assert recut(recut(lists, (1, 1)), (1, 1, 1)).cores == lists.cores
    with pytest.raises(UserError, match="3 lists for 4 ranks"):
        recut(lists, (1,) * 4)
    assert recut(setup_of(threads=3), (1,)).threads == 3
    assert recut(setup_of(), (1,)).threads == resolve(Options("shardling", tp=1, device="cpu")).threads


def test_what_was_given_is_kept():
    given = setup_of(cache_memory=2**24).given
    assert given == Given(None, "auto", 2**24, None)
    cut = recut(setup_of(cache_memory=2**24), (1, 1, 1))
    assert max(cut.layout.kv_bytes(rank, cut.pages) for rank in range(3)) <= 2**24
