"""How answers look: text as it comes, times, log-probabilities as JSON, and the cut beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from shardwise.engine.outputs import Logprobs
from shardwise.engine.setup import Setup


def rates(tokens: int, first_s: float, last_s: float) -> Iterator[str]:
    """Times of one answer as people read them: until the first token, and for each further one."""
    yield f"first token {1000 * first_s:.0f} ms"
    yield f"{tokens} tokens"
    if tokens > 1 and last_s > first_s:
        each_s = (last_s - first_s) / (tokens - 1)
        yield f"{1 / each_s:.1f} tok/s"
        yield f"{1000 * each_s:.1f} ms/token"


def write(text: str) -> None:
    """Text to standard output at once. What a terminal would take for a command is not passed on to it."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" or ord(c) > 0x9F else "\ufffd" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def shown_logprobs(place: Logprobs, top: int) -> dict[str, object]:
    """The log-probabilities at one place as JSON: the token's own, and the `top` likeliest, or those of ids that were named."""
    named = {
        token: {"token_id": token, "token": found.decoded_token, "logprob": found.logprob} for token, found in place.items()
    }
    ranked = sorted((found.rank, token) for token, found in place.items() if found.rank is not None and found.rank <= top)
    others = [named[token] for token, found in place.items() if found.rank is None]
    return {**next(iter(named.values())), "top": [named[token] for _, token in ranked[:top]] + others}


def show_cut(setup: Setup) -> None:
    """Draws the cut on standard error."""
    from rich.console import Console

    from shardwise.cli.draw import draw_cut

    draw_cut(Console(stderr=True), setup.name, setup.layout)
