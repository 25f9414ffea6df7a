"""The first steps of `shardwise serve`, before anything slow is imported: what was asked, the socket, the plan, the ranks.

This process never imports torch: it is the first front, and the engine and its ranks are processes that end with it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from shardwise.engine.host_process import HostProcess
from shardwise.engine.intensity import Intensity
from shardwise.engine.setup import Options, resolve
from shardwise.engine.supervise import FAIL_FAST, Policy
from shardwise.errors import UserError
from shardwise.server import banner
from shardwise.server.listener import listen, others_reach
from shardwise.server.settings import Settings
from shardwise.telemetry import log

if TYPE_CHECKING:
    from shardwise.server.core import Bars


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the server is told besides its settings. `fronts` processes speak HTTP, this one among them; `queue` requests may
    wait, None leaves it to the engine. `policy` says what the loss of a rank leads to. `anybody` may ask it, also from
    elsewhere, without a key. `intensity`: how many losses of the engine's process are made good; none where `most` is 0."""

    fronts: int = 1
    queue: int | None = None
    anybody: bool = False
    policy: Policy = FAIL_FAST
    verbose: bool = False
    bars: Bars | None = None
    intensity: Intensity = field(default_factory=Intensity)


def serve(options: Options, settings: Settings, wanted: Wanted) -> int:
    """Serves until told to end; the exit code. UserError where it cannot start, ShardwiseError where it fails later."""
    if not (settings.api_keys or wanted.anybody) and others_reach(settings.host):
        raise UserError(
            f"--host {settings.host} lets others reach this server, and no key is set: give --api-key KEY, or say "
            "--insecure-no-key if anybody may use it"
        )
    settings = replace(settings, verbose=wanted.verbose)
    setup = resolve(options)
    with listen(settings.host, settings.port) as listener, HostProcess(setup.layout.mesh.size, settings.log_format) as host:
        # Only now, while the ranks import what they need: these take long, too.
        from shardwise.server.core import CoreStart

        core = CoreStart(setup, host, wanted.queue, wanted.policy, wanted.bars)
        say(banner.plan(setup))
        from shardwise.server.run import Run

        return Run(core, replace(settings, port=listener.getsockname()[1]), wanted.fronts, listener, wanted.intensity).to_end()


def say(line: str) -> None:
    """A line of the start, on standard output, at once."""
    sys.stdout.write(log.line(line))
    sys.stdout.flush()
