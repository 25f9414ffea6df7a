"""The threads that one rank computes with: a handle of the compiled library's pool."""

from __future__ import annotations

import weakref

from shardwise import native


class Pool:
    """`threads` threads, the caller's among them. One call at a time; its threads end with it. `crowded`: there are more
    threads than processors, so that waiting must not keep one busy."""

    def __init__(self, threads: int, crowded: bool = False) -> None:
        self.threads = threads
        make = native.function("sw_pool", native.NUMBER, native.NUMBER, result=native.POINTER)
        self.handle: int = make(threads, int(crowded))
        weakref.finalize(self, native.function("sw_pool_end", native.POINTER), self.handle)
