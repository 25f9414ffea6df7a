"""How far each rank's weights are, as bars in the terminal. It starts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardwise.engine.ranks import Progress
    from shardwise.engine.setup import Setup


@contextmanager
def bars(setup: Setup) -> Iterator[Progress]:
    """A bar of loaded bytes for each rank on standard error, gone when all are ready."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        ranks = range(setup.layout.mesh.size)
        tasks = [bars.add_task(f"rank {rank}", total=setup.layout.weight_bytes(rank)) for rank in ranks]
        yield lambda rank, size: bars.advance(tasks[rank], size)
