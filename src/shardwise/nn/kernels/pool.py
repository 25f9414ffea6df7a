"""The threads that one rank computes with: a handle of the compiled library's pool."""

from __future__ import annotations

import weakref

from shardwise import native


class Pool:
    """`threads` threads, the caller's among them. One call at a time; its threads end with it."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        make = native.function("sw_pool", native.NUMBER, result=native.POINTER)
        self.handle: int = make(threads)
        weakref.finalize(self, native.function("sw_pool_end", native.POINTER), self.handle)
