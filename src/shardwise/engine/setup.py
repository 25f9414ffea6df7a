"""What the user asked for becomes numbers, once: the layout, the dtype, the device, how long a sequence may be.

Everything that can be refused is refused here, before a process starts or a weight is read. It imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shardwise.engine.devices import available_bytes, cpus, gpus
from shardwise.engine.hub import resolve_model
from shardwise.errors import CapacityError, ConfigError, UserError
from shardwise.spec.binding import bind
from shardwise.spec.blocks import Linear, Model, walk
from shardwise.spec.checkpoint import open_checkpoint, read_json
from shardwise.spec.config import read_model
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh

CHUNK_TOKENS = 512
"""The most tokens of a prompt in one forward: bounds the memory of activations."""

LEAST_CONTEXT = 256
"""A layout that cannot hold the cache of this many tokens is refused rather than run."""

RANK_BYTES = {"cpu": 320 * 2**20, "cuda": 700 * 2**20}
"""What a rank takes besides weights, cache and activations: interpreter, torch, its runtime. Measured, see docs/log.md."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
LOAD_FORMATS = ("auto", "dummy")


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may say. None and "auto" are decided by `resolve`."""

    model: str
    tp: int | None = None
    shares: tuple[float, ...] | None = None
    dtype: str = "auto"
    device: str = "auto"
    load_format: str = "auto"
    memory: int | None = None
    max_model_len: int | None = None
    threads: int | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What will run. `context` tokens are the most a request may have; `pages[g]` the pages of each cache group."""

    folder: Path
    config: Mapping[str, Any]
    layout: Layout
    device: str
    load_format: str
    context: int
    pages: tuple[int, ...]
    threads: int

    @property
    def name(self) -> str:
        return self.folder.name


def resolve(options: Options, folder: Path | None = None, *, check_weights: bool = True) -> Setup:
    """Decides everything, or raises a UserError that says what would work. `folder` spares looking up the model."""
    _known("--dtype", options.dtype, DTYPES)
    _known("--device", options.device, DEVICES)
    _known("--load-format", options.load_format, LOAD_FORMATS)
    folder = folder or resolve_model(options.model, revision=options.revision)
    config = read_json(folder / "config.json")
    model = read_model(config)
    tp = _degree(options)
    device = _device(options.device, tp)
    dtype = model.dtype if options.dtype == "auto" else options.dtype
    layout = Layout(model, Mesh(tp=tp), Shares.of(options.shares or (1.0,) * tp), dtype, dtype)
    if check_weights:
        _runnable(model)
        if options.load_format == "auto":
            bind(model, open_checkpoint(folder))
    context = _context(layout, options, device)
    threads = options.threads or max(1, cpus() // tp)
    pages = layout.kv_pages(context, CHUNK_TOKENS)
    return Setup(folder, config, layout, device, options.load_format, context, pages, threads)


def _known(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{flag} {value!r} is not known; choose one of {', '.join(choices)}")


def _degree(options: Options) -> int:
    """The degree: as asked, else as many as there are shares, else 1."""
    if options.tp is None:
        return len(options.shares) if options.shares else 1
    if options.tp < 1:
        raise UserError(f"--tensor-parallel-size {options.tp}: it takes a whole number of at least 1")
    return options.tp


def _device(asked: str, tp: int) -> str:
    """The kind of device; GPUs are refused where there are fewer than ranks."""
    found = gpus() if asked in ("auto", "cuda") else 0
    if asked == "cpu" or (asked == "auto" and not found):
        return "cpu"
    if found >= tp:
        return "cuda"
    fewer = f"-tp {found}, or " if found else ""
    raise UserError(f"-tp {tp} needs {tp} GPUs, one a rank, and this machine shows {found}; use {fewer}--device cpu")


def _runnable(model: Model) -> None:
    """Formats that are described, so that a plan is right, but that nothing multiplies by yet."""
    for block in (model.embed, *(run.block for run in model.runs), model.head):
        for path, node in walk(block):
            if isinstance(node, Linear) and node.format.name != "dense":
                raise ConfigError(
                    f"{path}.{node.name} is stored as {node.format.name}: such a checkpoint can be inspected, but not run yet; "
                    "use the model's unquantised checkpoint (float32, bfloat16 or float16)"
                )


# --- memory ---------------------------------------------------------------------------------------------------------------


def rank_bytes(layout: Layout, rank: int, context: int, device: str) -> int:
    """What one rank will take with sequences of up to `context` tokens: weights, cache, activations, its process."""
    pages = layout.kv_pages(context, CHUNK_TOKENS)
    cache = layout.kv_bytes(rank, pages)
    return layout.arena_bytes(rank) + cache + activation_bytes(layout, context) + RANK_BYTES[device]


def activation_bytes(layout: Layout, context: int) -> int:
    """An upper estimate of the memory that one forward needs beside weights and cache: hidden states, the attention's gathered
    keys and values of one layer, its mask, and the logits of one row."""
    model, tokens = layout.model, min(CHUNK_TOKENS, context)
    widest = max(
        max(len(s) for s in layout.spans(node.out)) if node.out.cut else node.out.size
        for run in model.runs
        for _, node in walk(run.block)
        if isinstance(node, Linear)
    )
    gathered = max(2 * 2 * context * max(len(s) for s in layout.spans(group.kv)) for group in layout.cache)
    return 4 * (tokens * (6 * model.hidden + 3 * widest) + gathered + tokens * context // 4 + 4 * model.vocab)


def _context(layout: Layout, options: Options, device: str) -> int:
    """The longest sequence: as asked if it fits, else the model's own or what the memory allows."""
    most = layout.model.context
    asked = options.max_model_len
    if asked is not None and not 1 <= asked <= most:
        raise UserError(f"--max-model-len {asked} is out of range; this model takes 1 to {most} tokens")
    budget = options.memory or available_bytes(device, layout.mesh.tp)

    def fits(context: int) -> bool:
        return all(rank_bytes(layout, r, context, device) <= budget for r in range(layout.mesh.size))

    wanted = asked or most
    if fits(wanted):
        return wanted
    least = asked or min(LEAST_CONTEXT, most)
    if not fits(least):
        raise CapacityError(_refusal(layout, least, device, budget, options))
    return _last(fits, least, wanted)


def _last(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest n from low to high for which `fits` holds, which it does for `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _refusal(layout: Layout, context: int, device: str, budget: int, options: Options) -> str:
    """Why it does not fit, and the smallest change that would."""
    worst = max(range(layout.mesh.size), key=lambda r: rank_bytes(layout, r, context, device))
    cache = layout.kv_bytes(worst, layout.kv_pages(context, CHUNK_TOKENS))
    parts = (
        f"{mib(layout.arena_bytes(worst))} weights + {mib(cache)} cache of {context} tokens + "
        f"{mib(activation_bytes(layout, context))} activations + {mib(RANK_BYTES[device])} process"
    )
    return (
        f"rank {worst} of {layout.mesh.tp} needs {mib(rank_bytes(layout, worst, context, device))} ({parts}), and "
        f"{'--memory allows' if options.memory else 'there are'} {mib(budget)}: {_fix(layout, context, device, options)}"
    )


def _fix(layout: Layout, context: int, device: str, options: Options) -> str:
    """The smallest degree at which the same request fits, or that none does."""
    for tp in range(layout.mesh.tp + 1, layout.model.heads + 1):
        budget = options.memory or available_bytes(device, tp)
        wider = replace(layout, mesh=Mesh(tp=tp), shares=Shares.even(tp))
        if all(rank_bytes(wider, r, context, device) <= budget for r in range(tp)):
            return f"use -tp {tp}"
    return f"no degree up to {layout.model.heads} fits; give each rank more memory, or use a smaller model"


def mib(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**20:.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"
