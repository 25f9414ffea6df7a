"""What waits for a reader comes out as it went in, whatever was packed meanwhile, and never grows beyond its bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.sched.events import Emitted, Ended, Event, Scored
from shardwise.sched.step import Chosen
from shardwise.server.backlog import PORTION, Backlog, Entry

ids, figures = st.integers(0, 2**31 - 1), st.floats(max_value=0.0, allow_nan=False)
chosen = st.builds(Chosen, ids, figures, ids, st.lists(st.tuples(ids, figures), max_size=3).map(tuple))
events = st.one_of(
    st.builds(Emitted, ids, ids, chosen, st.sampled_from([None, "stop", "length", "abort"])),
    st.builds(Scored, ids, st.lists(chosen, max_size=3).map(tuple)),
    st.builds(Ended, ids, st.none() | st.text()),
)
steps = st.lists(st.one_of(st.none(), st.tuples(ids, events)), max_size=60)


def token(place: int) -> Event:
    return Emitted(1, 0, Chosen(place, -1.0 / (place + 1), 1, tuple((n, -n - 0.1) for n in range(5))))


@settings(deadline=None)
@given(steps, st.integers(1, 8))
def test_what_goes_in_comes_out_in_its_order(done: list[tuple[int, Event] | None], loose: int) -> None:
    """None stands for a reader that takes something."""
    backlog, found = Backlog(10**6, 10**9, loose), list[Entry]()
    for each in done:
        if each is None:
            found += backlog.take()
        else:
            backlog.put(*each)
    while backlog:
        taken = backlog.take()
        assert taken
        found += taken
    assert found == [each for each in done if each is not None] and backlog.take() == []


def test_no_more_than_a_portion_is_taken_at_once() -> None:
    """Also of a request with so many choices that none of it is packed."""
    backlog = Backlog(10**6, 10**9, 10_000)
    for place in range(1000):
        backlog.put(place, token(place))
    taken = []
    while backlog:
        taken.append(backlog.take())
    assert [index for some in taken for index, _ in some] == list(range(1000))
    assert max(map(len, taken)) == PORTION


def test_it_is_full_by_tokens_or_by_bytes_of_what_waits_now() -> None:
    for backlog, most in ((Backlog(500, 10**9), 500), (Backlog(10**9, 20_000), 1000)):
        for place in range(5000):  # a reader that keeps up
            backlog.put(0, token(place))
            if place % 100 == 99:
                while backlog:
                    backlog.take()
        assert not backlog.full
        count = 0
        while not backlog.full:
            backlog.put(0, token(count))
            count += 1
        assert 50 < count <= most + 1 and not backlog
        backlog.put(0, token(0))
        backlog.put(0, Ended(1))
        assert not backlog and backlog.take() == [], "it keeps nothing more"
