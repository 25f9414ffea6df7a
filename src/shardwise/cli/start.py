"""From flags to an engine that waits for prompts: the ranks of this host or torchrun's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shardwise import env, native
from shardwise.cli.bars import bars
from shardwise.engine.contract import TokenEngine
from shardwise.engine.engine import Engine
from shardwise.engine.process_ranks import ProcessRanks
from shardwise.engine.ranks import Progress, Ranks
from shardwise.engine.setup import Setup


def followed() -> bool:
    """Under torchrun, every process but the first serves as a rank until it is told to end; True once that was so."""
    place = env.torchrun()
    if place is None or place.rank == 0:
        return False
    from shardwise.engine.torchrun import follow

    follow(place)
    return True


def start_ranks(setup: Setup, progress: Progress | None) -> Ranks:
    """The ranks that `setup` asks for: torchrun's processes where it started us, else processes of this host."""
    place = env.torchrun()
    if place is None:
        return ProcessRanks(setup, progress)
    from shardwise.engine.torchrun import TorchrunRanks

    return TorchrunRanks(setup, place, progress)


@contextmanager
def start(setup: Setup) -> Iterator[TokenEngine]:
    """An engine whose ranks have loaded, closed at the end."""
    with Engine(setup, loaded(setup)) as engine:
        yield engine


def loaded(setup: Setup) -> Ranks:
    """Ranks that have loaded. The caller closes them. What keeps them from being faster is said, once each."""
    for note in (native.note() if setup.device == "cpu" else None, setup.crowded):
        if note is not None:
            sys.stderr.write(f"shardwise: {note}\n")
    if not sys.stderr.isatty():
        return start_ranks(setup, None)
    with bars(setup) as progress:
        return start_ranks(setup, progress)
