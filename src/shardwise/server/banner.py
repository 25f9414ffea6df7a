"""The lines that a start prints, always of one shape: what runs where, how long it took, where it is, what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardwise.engine.devices import available_bytes
from shardwise.engine.memory import RANK_BYTES, Demand, mib
from shardwise.engine.setup import Setup
from shardwise.spec.layout import PAGE_TOKENS
from shardwise.spec.model import parameters
from shardwise.spec.requantised import left_dense


def plan(setup: Setup) -> str:
    """What will run: the model, its cut, and what the fullest rank will take, of what. To be asked before ranks start."""
    layout = setup.layout
    kept = cache_tokens(setup)
    demand = Demand(layout, setup.device, setup.memory, None, setup.limits.tokens, setup.limits.sequences)

    def other(rank: int) -> int:
        return demand.activation_bytes(rank, setup.context, kept) + RANK_BYTES[setup.device]

    def taken(rank: int) -> int:
        return layout.arena_bytes(rank) + layout.kv_bytes(rank, setup.pages) + other(rank)

    rank = max(range(layout.mesh.size), key=taken)
    alike = len({layout.arena_bytes(each) for each in range(layout.mesh.size)}) == 1
    budget = setup.memory or available_bytes(setup.device, layout.mesh.tp)
    held = f" in {setup.quantization.title}" if setup.quantization else ""
    if setup.quantization and (dense := left_dense(layout.model)):
        held += f", but for {dense[0]}" + (f" and {len(dense) - 1} more" if len(dense) > 1 else "")
    return (
        f"plan    {setup.name} {short(parameters(layout.model))} params{held} · tp={layout.mesh.tp} · {setup.device} · "
        f"{'per rank' if alike else f'rank {rank}, the fullest'}: weights {mib(layout.arena_bytes(rank))} + "
        f"KV {mib(layout.kv_bytes(rank, setup.pages))} ({short(kept)} tokens) + other {mib(other(rank))} = {mib(taken(rank))} "
        f"of {mib(budget)} · context {setup.context}{' (what the memory allows)' if setup.bound == 'memory' else ''}"
    )


def ready(times: Mapping[str, float], total_s: float) -> str:
    """How long the start took, and what of it; parts may overlap."""
    return f"ready   {total_s:.1f} s ({', '.join(f'{name} {spent:.1f}' for name, spent in times.items())})"


def api(url: str, names: Sequence[str]) -> str:
    """Where it is, and what the model is called there."""
    called = ", ".join(f'"{name}"' for name in names)
    return f"API     {url}/v1   model {called}      docs {url}/docs"


def attempt(url: str, key: bool) -> str:
    """What to type next."""
    return f"try     shardwise chat --url {url}{' --api-key KEY' if key else ''}        stop   Ctrl-C"


def ending(count: int, within_s: float) -> str:
    """What is waited for after a first signal."""
    return f"shardwise: {count} open request{'s' * (count > 1)} may finish within {within_s:g} s; a second Ctrl-C does not wait"


def cache_tokens(setup: Setup) -> int:
    """How many tokens the caches hold for all sequences together: those of the group that keeps the longest."""
    groups = [pages for group, pages in zip(setup.layout.cache, setup.pages, strict=True) if group.window is None]
    return PAGE_TOKENS * (max(groups or setup.pages, default=1) - 1)


def short(number: int) -> str:
    """A count as people say it: 1.6M, 16k."""
    for scale, name in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= scale:
            return f"{number / scale:.3g}{name}"
    return str(number)
