"""One HTTP request as endpoints know it: who asks, under which id, since when."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """`id` is the client's X-Request-Id, or a drawn one; it is safe to echo. `tenant` names the key that was used, never the
    key itself, and is "" where none is asked for: caches are shared within a tenant only. `began` is monotonic seconds.
    `key` is what the request is known by when it comes again: the same body from the same tenant."""

    id: str
    tenant: str
    began: float
    path: str
    beta: str = ""
    key: str = ""
