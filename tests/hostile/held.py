"""What a server holds, before and after: requests, pages, connections, descriptors, threads, processes, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.server.live import Live

ZERO = {"slots": 0, "running": 0, "waiting": 0, "pages_held": 0, "connections": 0}
GROWTH_MIB = 24
"""So much more memory may be held after cases that were played before than before them: 10 KiB a request of 2 500. What the
first time brings is no leak: caches of shapes fill up, and an allocator keeps what the largest body took."""


def held(live: Live, key: str | None = None) -> dict[str, Any]:
    """What the server holds now."""
    _, about = live.ask("/server_info", key=key)
    _, slots = live.ask("/slots", key=key)
    processes = of(live)
    port = live.url.rpartition(":")[2]
    mine = [each for process in processes for each in process.net_connections("tcp") if each.laddr.port == int(port)]
    return {
        "slots": len(slots),
        "running": about["counters"]["running"],
        "waiting": about["counters"]["waiting"],
        "pages_held": sum(group["total"] - group["free"] for group in about["pages"]),
        "connections": sum(each.status != psutil.CONN_LISTEN for each in mine),
        "descriptors": sum(process.num_fds() for process in processes),
        "threads": sum(process.num_threads() for process in processes),
        "processes": len(processes),
        "resident_mib": resident(processes),
    }


def of(live: Live) -> list[psutil.Process]:
    """The server's processes."""
    first = psutil.Process(live.process.pid)
    return [first, *first.children(recursive=True)]


def resident(processes: list[psutil.Process]) -> int:
    """MiB. A child that ends meanwhile holds none."""
    found = 0
    for process in processes:
        try:
            found += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return round(found / 2**20)


class Watched:
    """What a server held when it began to be watched, on the way, and in the end."""

    def __init__(self, live: Live, key: str | None = None) -> None:
        self._live, self._key = live, key
        self._before, _ = self._settled(ZERO)
        self._on_the_way: list[int] = []

    def look(self) -> int:
        """The memory of all processes now, in MiB, which is kept too."""
        self._on_the_way.append(resident(of(self._live)))
        return self._on_the_way[-1]

    def leaked(self, play: Callable[[], object]) -> dict[str, Any]:
        """The memory before and after what was played once before is played again, and whether it is too much more."""
        now = [self._settled(ZERO)[0]["resident_mib"]]
        play()
        now.append(self._settled(ZERO)[0]["resident_mib"])
        return {"played_again_mib": now, "leaked": now[1] > now[0] + GROWTH_MIB}

    def result(self) -> dict[str, Any]:
        """What there was and is, what is left that should not be, and what the server said. It still answers."""
        before = self._before
        after, zero_s = self._settled({**ZERO, "descriptors": before["descriptors"]})
        status, answer = self._live.ask("/v1/completions", {"prompt": "Once", "max_tokens": 4}, key=self._key)
        assert status == 200, answer
        left = [f"{name}: {after[name]}" for name in ZERO if after[name]]
        left += [
            f"{name}: {before[name]}, then {after[name]}" for name in ("descriptors", "processes") if after[name] > before[name]
        ]
        log = [line for line in self._live.said if not line.startswith("shardwise: no GPU")]
        return {"before": before, "after": after, "resident_mib": self._on_the_way, "left": left,
                "zero_after_s": round(zero_s, 2), "log": log[:20]}  # fmt: skip

    def _settled(self, wanted: dict[str, Any], within_s: float = 20) -> tuple[dict[str, Any], float]:
        """(what is held once it is at most what was `wanted`, or after so long; after how many seconds)."""
        began = time.monotonic()
        while True:
            now = held(self._live, self._key)
            took_s = time.monotonic() - began
            if took_s > within_s or all(now[name] <= most for name, most in wanted.items()):
                return now, took_s
            time.sleep(0.1)
