"""What the user asked for becomes numbers, once: the layout, the dtype, the device, how long a sequence may be.

Everything that can be refused is refused here, from config.json, before a weight is downloaded or a process started.
It imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shardwise import native
from shardwise.engine.cores import Places, bound, crowded, shared, threads_of
from shardwise.engine.devices import available_bytes, gpus, torch_is_for_cuda
from shardwise.engine.hub import model_name, resolve_config, resolve_model
from shardwise.engine.memory import SEQUENCES, STEP_TOKENS, Bound, Demand, room
from shardwise.errors import CapacityError, ConfigError, LayoutError, UserError
from shardwise.sched.limits import Limits
from shardwise.spec.binding import bind
from shardwise.spec.blocks import Linear, walk
from shardwise.spec.checkpoint import open_checkpoint, read_json
from shardwise.spec.config import read_model
from shardwise.spec.formats import GROUPS, KINDS, Dense, Grouped
from shardwise.spec.layout import Layout, Shares
from shardwise.spec.mesh import Mesh
from shardwise.spec.model import Model, ropes
from shardwise.spec.requantised import DEFAULT_GROUPS, quantised_as

DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
DEVICES = ("auto", "cpu", "cuda")
LOAD_FORMATS = ("auto", "dummy")

COMPILED = "float32"
"""The dtype of activations where kernels are compiled, whatever the weights are."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may say. None and "auto" are decided by `resolve`. `memory` and `cache_memory` are in bytes a rank.

    `max_num_seqs` sequences run at once, and `max_num_batched_tokens` of them go into one step. `quantization` None runs
    weights as they are stored; `quantization_group` inputs share a scale. `cores`: which processors ranks are kept to, as
    `engine.cores.bound` has it.
    """

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
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enable_prefix_caching: bool = True
    cache_memory: int | None = None
    expert_parallel: bool = False
    quantization: str | None = None
    quantization_group: int | None = None
    kv_cache_dtype: str = "auto"
    cores: str = "auto"


@dataclass(frozen=True, slots=True)
class Given:
    """What `recut` decides anew: `threads`, `cores` and `cache_memory` as in Options. `free`: the bytes that might be
    taken at the start, as `Demand` has it; None where `memory` says. `first`: the context, what bound it, and the sequences of
    the setup that was resolved, in one that was recut: with as many ranks again, these come back."""

    threads: int | None = None
    cores: str = "auto"
    cache_memory: int | None = None
    free: int | None = None
    first: tuple[int, Bound, int] | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What will run. `context` tokens are the most a request may have, by `bound`; `pages[g]` the pages of cache group g,
    SCRATCH among them.

    `memory`: the bytes that a rank is held to by the kernel, on a CPU; None leaves it free. `quantization`: what the layout's
    model was made of config.json's by; None leaves it as it is. `cores`: the processors of each rank; none where ranks run on
    any. `given`: what it takes to make another one of it.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    layout: Layout
    device: str
    load_format: str
    context: int
    bound: Bound
    pages: tuple[int, ...]
    limits: Limits
    threads: int
    memory: int | None = None
    quantization: Grouped | None = None
    cores: Places = ()
    given: Given = Given()

    @property
    def crowded(self) -> str | None:
        """What is to be expected where threads take turns on the processors; None where they need not."""
        return crowded(self.layout.mesh.size, self.threads, shared(self.cores)) if self.device == "cpu" else None

    @property
    def sequence_pages(self) -> tuple[int, ...]:
        """The most pages that one sequence ever has in each group: all its tokens', or its window's and what is in flight."""
        in_flight = self.limits.tokens * self.limits.flight
        return tuple(1 + pages for pages in self.layout.kv_pages(self.context, in_flight))

    def only(self, tokens: int, sequences: int = 1) -> Setup:
        """The same with a cache for `sequences` sequences of up to `tokens` tokens each."""
        context = min(self.context, tokens)
        one = self.layout.kv_pages(context, self.limits.tokens)
        pages = tuple(min(mine, 1 + sequences * pages) for mine, pages in zip(self.pages, one, strict=True))
        return replace(self, context=context, pages=pages)


def resolve(options: Options) -> Setup:
    """Decides everything, or raises a UserError that says what would work."""
    _known("--device", options.device, DEVICES)
    _known("--load-format", options.load_format, LOAD_FORMATS)
    path = resolve_config(options.model, revision=options.revision)
    config = read_json(path)
    layout = layout_of(options, read_model(config))
    _runnable(layout.model)
    device = _device(options.device, layout.mesh.tp)
    quantization = quantization_of(options)
    if quantization and device != "cpu":
        raise UserError(f"--quantization {quantization.kind} is computed on CPUs alone; leave it out, or use --device cpu")
    if device == "cuda" and layout.kv_dtype == "int8":
        raise UserError("--kv-cache-dtype int8 is for CPUs; on GPUs use auto, bfloat16 or float16, or add --device cpu")
    layout = computed(layout, device)
    cores = bound(options.cores, layout.mesh.tp, options.threads) if device == "cpu" else ()
    tokens = _least("--max-num-batched-tokens", options.max_num_batched_tokens, STEP_TOKENS[device])
    sequences = _least("--max-num-seqs", options.max_num_seqs, min(SEQUENCES[device], tokens))
    if sequences > tokens:
        raise UserError(
            f"--max-num-seqs {sequences} is more than the {tokens} tokens of a step (--max-num-batched-tokens): each "
            "sequence needs one"
        )
    free = None if options.memory else available_bytes(device, layout.mesh.tp if device == "cuda" else 1)
    demand = Demand(layout, device, options.memory, options.cache_memory, tokens, sequences, free)
    found = room(demand, options.max_model_len, fewer=options.max_num_seqs is None)
    weights = options.load_format == "auto"
    folder = resolve_model(options.model, revision=options.revision, weights=weights)
    if weights:
        bind(layout.model, open_checkpoint(folder))
    return Setup(
        name=model_name(options.model, path),
        folder=folder,
        config=config,
        layout=layout,
        device=device,
        load_format=options.load_format,
        context=found.context,
        bound=found.bound,
        pages=found.pages,
        limits=_limits(layout.model, tokens, found.sequences, options.enable_prefix_caching),
        threads=options.threads or threads_of(cores, layout.mesh.tp),
        memory=options.memory,
        quantization=quantization,
        cores=cores,
        given=Given(options.threads, options.cores, options.cache_memory, free),
    )


def recut(setup: Setup, shares: Sequence[float]) -> Setup:
    """The same model on as many ranks as there are `shares`, with as many pages as memory allows now.

    What the ranks of `setup` hold is free for the new ones, which take no more together than was free at the start. Requests
    may be no longer, and no more sequences run at once, than when that was resolved, and both may become less. UserError, which
    says what would work, where there are too many ranks for the model or the machine, or they have no room."""
    ranks, before, given = len(shares), setup.layout.mesh.size, setup.given
    longest, bound_first, sequences = first = given.first or (setup.context, setup.bound, setup.limits.sequences)
    if not ranks:
        raise UserError("no shares: give one for each rank, such as 1,1 for two")
    layout = replace(setup.layout, mesh=Mesh(tp=ranks), shares=Shares.of(shares))
    if setup.device == "cuda" and ranks > (found := gpus()):
        raise UserError(f"{ranks} ranks need {ranks} GPUs, one each, and this machine shows {found}; use {found} or fewer")
    cores = _places(setup, ranks) if setup.device == "cpu" else ()
    free = None if setup.memory else _free(setup, ranks)
    demand = Demand(layout, setup.device, setup.memory, given.cache_memory, setup.limits.tokens, sequences, free)
    try:
        found_room = room(demand, None, fewer=True, most=longest)
    except CapacityError as error:
        raise CapacityError(f"{error} ({before} ranks serve now)") from None
    return replace(
        setup,
        layout=layout,
        context=found_room.context,
        bound="memory" if found_room.context < longest else bound_first,
        pages=found_room.pages,
        limits=replace(setup.limits, sequences=found_room.sequences),
        threads=given.threads or threads_of(cores, ranks),
        cores=cores,
        given=replace(given, first=first),
    )


def _places(setup: Setup, ranks: int) -> Places:
    """The processors of each of so many ranks. Where each was given a list of its own, the first of these are used."""
    lists = setup.given.cores.split("|")
    if len(lists) > 1 and ranks < len(lists):
        return bound("|".join(lists[:ranks]), ranks, setup.given.threads)
    return bound(setup.given.cores, ranks, setup.given.threads)


def _free(setup: Setup, ranks: int) -> int:
    """What so many ranks may take, as `Demand.free` has it: what is free with what those of `setup` hold, and no more than was
    free at the start. A rank that is gone holds nothing, and is in what is free already: hence that bound."""
    layout, begun = setup.layout, setup.given.free
    held = [layout.arena_bytes(rank) + layout.kv_bytes(rank, setup.pages) for rank in range(layout.mesh.size)]
    if setup.device == "cpu":
        now = available_bytes("cpu", 1) + sum(held)
    else:  # each has a GPU of its own; further ones hold nothing
        now = available_bytes("cuda", ranks) + (min(held) if ranks <= len(held) else 0)
    return now if begun is None else min(now, begun)


def quantization_of(options: Options) -> Grouped | None:
    """What weights are to be quantised to while they are loaded; None for nothing."""
    kind, group = options.quantization, options.quantization_group
    if kind is None:
        if group is not None:
            raise UserError(f"--quantization-group-size {group} is no use alone; give --quantization int8 or int4, too")
        return None
    _known("--quantization", kind, tuple(KINDS))
    if group is not None and group not in GROUPS:
        raise UserError(f"--quantization-group-size {group} is not one of {', '.join(map(str, GROUPS))}")
    return Grouped(kind, DEFAULT_GROUPS[kind] if group is None else group)


def layout_of(options: Options, model: Model) -> Layout:
    """How `model` is cut and held by what the options say: degree, shares, whole experts or parts of all, dtypes, and in
    how many bits."""
    _known("--dtype", options.dtype, DTYPES)
    if options.kv_cache_dtype.startswith("fp8"):
        raise UserError(f"--kv-cache-dtype {options.kv_cache_dtype}: 8-bit floats are not kept here; int8 takes as much room")
    _known("--kv-cache-dtype", options.kv_cache_dtype, KV_DTYPES)
    tp = options.tp if options.tp is not None else len(options.shares or (1.0,))
    if tp < 1:
        raise LayoutError(f"--tensor-parallel-size {tp}: it takes a whole number of at least 1")
    dtype = model.dtype if options.dtype == "auto" else options.dtype
    # Shares are made for a degree that can be cut; a higher one is the layout's to refuse.
    shares = Shares.of(options.shares) if options.shares else Shares.even(min(tp, model.heads + 1))
    model = quantised_as(model, quantization_of(options))
    kv_dtype = dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype
    return Layout(model, Mesh(tp=tp), shares, dtype, kv_dtype, options.expert_parallel)


def computed(layout: Layout, device: str) -> Layout:
    """The layout with the dtype that activations will have on `device`."""
    return replace(layout, activations=COMPILED if device == "cpu" and native.available() else None)


def _limits(model: Model, tokens: int, sequences: int, prefixes: bool) -> Limits:
    """What bounds the scheduler; and how long a sequence may be before its keys are not turned as they were."""
    found = ropes(model)
    return Limits(
        tokens=tokens,
        sequences=sequences,
        turns=tuple(sorted({rope.boundary for rope in found if rope.long and rope.boundary})),
        shared=min((rope.boundary for rope in found if rope.dynamic and rope.boundary), default=None),
        prefixes=prefixes,
    )


def _least(flag: str, asked: int | None, usual: int) -> int:
    if asked is not None and asked < 1:
        raise UserError(f"{flag} {asked}: it takes a whole number of at least 1")
    return asked or usual


def _known(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{flag} {value!r} is not known; choose one of {', '.join(choices)}")


def _device(asked: str, tp: int) -> str:
    """The kind of device; GPUs are refused where there are fewer than ranks."""
    found = gpus() if asked in ("auto", "cuda") else 0
    if found and not torch_is_for_cuda():
        if asked == "cuda":
            raise UserError("--device cuda: the installed torch is for CPUs only; install a CUDA build, or use --device cpu")
        found = 0
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
            if isinstance(node, Linear) and not isinstance(node.format, Dense | Grouped):
                name = f"{path}.{node.name}".removeprefix(".")
                raise ConfigError(
                    f"{name} is stored as {node.format.name}: such a checkpoint can be inspected, but not run yet; "
                    "use the model's unquantised checkpoint (float32, bfloat16 or float16)"
                )
