"""The engine as a process: `python -m shardwise.engine.host --fd N --ranks N`, on one end of a socket pair.

`CoreProcess` starts it. It starts the ranks before it knows what they are to compute, as their imports take longest; when the
other end closes, it ends them and itself.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
from contextlib import suppress

from shardwise import env
from shardwise.engine.rank_processes import RankProcesses


def main() -> None:
    """Serves until the other end of `--fd` closes, or a rank is lost: exit code 1."""
    parser = argparse.ArgumentParser(description="a shardwise engine without a front; started by one, not by hand")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    args = parser.parse_args()
    control = socket.socket(fileno=args.fd)
    # Whoever started it decides when it ends, and says so by closing the connection; its ranks inherit this.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    started = RankProcesses()
    with suppress(OSError):  # the engine asks for those that are missing again, and says what is wrong
        started.reach(args.ranks)
    # Only now, while the ranks import what they need.
    from shardwise.engine.hosted import serve
    from shardwise.telemetry import log

    log.begin(env.log_format())

    os._exit(serve(control, started))


if __name__ == "__main__":
    main()
