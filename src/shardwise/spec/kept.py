"""What of a token stays in the cache, said by an attention and read by the layout. Nothing here knows how attention works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardwise.spec.axes import Axis


@dataclass(frozen=True, slots=True)
class Kept:
    """What an attention keeps of every token: for each head of axis `kv` one tensor of each of `dims` elements.

    "full" keeps all tokens, "window" the last `window`, "chunked" the same though a query may see fewer of them. "latent"
    keeps all, but one tensor that every head reads: it is not cut, and a rank without heads has none.
    """

    kind: Literal["full", "window", "chunked", "latent"]
    kv: Axis
    dims: tuple[int, ...]
    window: int | None = None
