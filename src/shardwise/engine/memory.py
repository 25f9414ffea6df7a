"""What a rank will take, and how long a sequence may therefore be. Estimates are upper ones: a cap has to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from shardwise.engine.devices import available_bytes, gpus
from shardwise.errors import CapacityError, UserError
from shardwise.spec.axes import BITS
from shardwise.spec.blocks import Attention, Linear, walk
from shardwise.spec.layout import PAGE_TOKENS, Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.mla import MLA
from shardwise.spec.moe import MoE

CHUNK_TOKENS = 512
"""The most tokens of a prompt in one forward: bounds the memory of activations."""

LEAST_CONTEXT = 256
"""A layout that cannot hold the cache of this many tokens is refused rather than run."""

RANK_BYTES = {"cpu": 320 * 2**20, "cuda": 700 * 2**20}
"""What a rank takes besides weights, cache and activations: interpreter, torch, gloo or the driver. See docs/log.md."""

Bound = Literal["model", "flag", "memory"]


@dataclass(frozen=True, slots=True)
class Room:
    """The most tokens that a request may have, and what sets that limit."""

    context: int
    bound: Bound


def room(layout: Layout, device: str, memory: int | None, asked: int | None) -> Room:
    """The longest sequence: as `asked` if it fits, else the model's own or what the memory allows.

    `memory` is what a rank may take in bytes, None for what is free. CapacityError says what would fit.
    """
    most = layout.model.context
    if asked is not None and not 1 <= asked <= most:
        raise UserError(f"--max-model-len {asked} is out of range; this model takes 1 to {most} tokens")
    wanted, least = asked or most, asked or min(LEAST_CONTEXT, most)
    if fits(layout, device, memory, wanted):
        return Room(wanted, "flag" if asked else "model")
    if not fits(layout, device, memory, least):
        raise CapacityError(_refusal(layout, device, memory, least))
    return Room(_last(lambda n: fits(layout, device, memory, n), least, wanted), "memory")


def fits(layout: Layout, device: str, memory: int | None, context: int) -> bool:
    """Whether every rank has room for one sequence of `context` tokens."""
    budget = memory or available_bytes(device, layout.mesh.tp)
    return all(rank_bytes(layout, rank, context, device) <= budget for rank in range(layout.mesh.size))


def rank_bytes(layout: Layout, rank: int, context: int, device: str) -> int:
    """What one rank will take with a sequence of `context` tokens: weights, cache, activations, its process."""
    cache = layout.kv_bytes(rank, layout.kv_pages(context, CHUNK_TOKENS))
    return layout.arena_bytes(rank) + cache + activation_bytes(layout, rank, context) + RANK_BYTES[device]


def activation_bytes(layout: Layout, rank: int, context: int) -> int:
    """What one forward needs beside weights and cache: hidden states and the widest linear's outputs of a chunk, one layer's
    gathered keys and values with their mask, and the logits of one row with what sampling makes of them."""
    tokens, item = min(CHUNK_TOKENS, context), BITS[layout.dtype] // 8
    widest, gathered, states = 0, 0, 6
    for block in {id(run.block): run.block for run in layout.model.runs}.values():
        for _, node in walk(block):
            if isinstance(node, Linear):
                widest = max(widest, len(layout.span(node.out, layout.mesh.coords(rank))))
            elif isinstance(node, Attention):
                gathered = max(gathered, _attention_bytes(layout, node, rank, tokens, context))
            elif isinstance(node, MLA):
                gathered = max(gathered, _latent_bytes(layout, node, rank, tokens, context))
            elif isinstance(node, MoE):
                # All tokens may go to one expert: its inputs, its outputs and these weighed, beside the sum.
                states = 10
    # Norms are computed in float32, whatever the dtype; sampling works on float64 and int64 rows of the vocabulary.
    return 4 * tokens * (states * layout.model.hidden + 3 * widest) + gathered + 16 * item * layout.model.vocab


def _attention_bytes(layout: Layout, attention: Attention, rank: int, tokens: int, context: int) -> int:
    """Gathered keys and values of one layer, once more where each query head gets its own copy, and the mask: as booleans,
    and as numbers, which torch makes of them. Bent scores are all held at once, in float32, while they are made anew."""
    at, item = layout.mesh.coords(rank), BITS[layout.dtype] // 8
    queries, kv = layout.heads(attention, at)
    copies = len(kv) + (0 if layout.even_groups(attention, at) else len(queries))
    reach = context if attention.window is None else min(context, attention.window + tokens + 2 * PAGE_TOKENS)
    scores = 0 if attention.softcap is None and not attention.sinks else 2 * 4 * tokens * len(queries)
    return reach * (2 * copies * attention.dim * item + tokens * (1 + item) + scores)


def _latent_bytes(layout: Layout, attention: MLA, rank: int, tokens: int, context: int) -> int:
    """Gathered latents of one layer and the mask, as above; the chunk's queries in the space of the latents: made, joined
    with their turned part, put into rows, and what they read. For 16-bit numbers torch's CPU kernel packs keys and values
    anew for each head that reads them."""
    item, [width] = BITS[layout.dtype] // 8, attention.kept.dims
    heads = len(layout.heads(attention, layout.mesh.coords(rank))[0])
    packed = 2 * heads if item < 4 else 0
    return context * ((2 + packed) * width * item + tokens * (1 + item)) + 5 * tokens * heads * width * item


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n from low to high for which `holds`, which it does for `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _refusal(layout: Layout, device: str, memory: int | None, context: int) -> str:
    """Why it does not fit, and the smallest change that would."""
    worst = max(range(layout.mesh.size), key=lambda rank: rank_bytes(layout, rank, context, device))
    cache = layout.kv_bytes(worst, layout.kv_pages(context, CHUNK_TOKENS))
    parts = (
        f"{mib(layout.arena_bytes(worst))} weights + {mib(cache)} cache of {context} tokens + "
        f"{mib(activation_bytes(layout, worst, context))} activations + {mib(RANK_BYTES[device])} process"
    )
    budget = memory or available_bytes(device, layout.mesh.tp)
    return (
        f"rank {worst} of {layout.mesh.tp} needs {mib(rank_bytes(layout, worst, context, device))} ({parts}), and "
        f"{'--memory allows' if memory else 'there are'} {mib(budget)}: {_remedy(layout, device, memory, context)}"
    )


def _remedy(layout: Layout, device: str, memory: int | None, context: int) -> str:
    """The smallest change that fits: a shorter context, even shares, more ranks; or that none does."""
    least = min(LEAST_CONTEXT, layout.model.context)
    if context > least and fits(layout, device, memory, least):
        longest = _last(lambda n: fits(layout, device, memory, n), least, context)
        return f"use --max-model-len {longest} or less"
    tp = layout.mesh.tp
    if fits(replace(layout, shares=Shares.even(tp)), device, memory, context):
        return f"use even shares (leave out --tensor-split) at -tp {tp}"
    most = layout.model.heads if device == "cpu" else min(layout.model.heads, gpus())
    for degree in range(tp + 1, most + 1):
        wider = replace(layout, mesh=Mesh(tp=degree), shares=Shares.even(degree))
        if fits(wider, device, memory, context):
            return f"use -tp {degree}"
    return f"no degree up to {most} fits; give each rank more memory, or use a smaller model"


def mib(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**20:.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"
