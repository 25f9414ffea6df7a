"""What the server can tell about itself: `/server_info` (configuration, plan, ranks, counts) and `/slots` (open requests).

No keys, no prompts and no answers are in it; counts are of the whole server, and open requests those of the key that asks.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import msgspec

from shardwise.engine.incident import Incident
from shardwise.engine.setup import Setup
from shardwise.engine.status import PagesStatus, RankStatus
from shardwise.server.banner import cache_tokens
from shardwise.server.call import Call
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.service import Service
from shardwise.server.settings import Settings
from shardwise.server.turn import owner
from shardwise.spec.model import parameters

PACKAGES = ("shardwise", "torch", "tokenizers", "jinja2", "msgspec", "uvicorn", "llguidance")


class PlannedRank(msgspec.Struct, frozen=True):
    """What the layout gives one rank; bytes as planned, which are those that are loaded."""

    rank: int
    weight_bytes: int
    kv_bytes: int


class Plan(msgspec.Struct, frozen=True):
    """How the model is cut. `context_bound` says what sets the context: the model, a flag, or memory."""

    tensor_parallel_size: int
    expert_parallel: bool
    shares: dict[str, tuple[float, ...]]
    dtype: str
    quantization: str | None
    kv_dtype: str
    device: str
    threads: int
    context: int
    context_bound: str
    cache_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    memory_bytes: int | None
    ranks: tuple[PlannedRank, ...]


class ModelCard(msgspec.Struct, frozen=True):
    """The model that is served."""

    name: str
    served_model_name: tuple[str, ...]
    architecture: str
    parameters: int
    layers: int
    vocabulary: int


class Counters(msgspec.Struct, frozen=True):
    """Requests by what they do and what became of them, since the start; tokens written, steps computed. Of the server as a
    whole: all fronts, all keys."""

    running: int
    waiting: int
    queue_limit: int | None
    accepted: int
    refused: int
    ended: int
    failed: int
    tokens: int
    steps: int


class ServerInformation(msgspec.Struct, frozen=True):
    """`ranks`: where each runs, and the bytes that it holds; `incidents`: the last that were lost. `unknown_fields`: how
    often a field came that nobody knows, at the process that answers (`pid`); with several keys without the names, which are
    words of somebody's."""

    versions: dict[str, str]
    pid: int
    model: ModelCard
    settings: dict[str, Any]
    plan: Plan
    ranks: tuple[RankStatus, ...]
    incidents: tuple[Incident, ...]
    pages: tuple[PagesStatus, ...]
    counters: Counters
    unknown_fields: dict[str, int]


class OpenRequest(msgspec.Struct, frozen=True):
    """A request that waits or runs. `front` is the process that took it in, counted from 0; no text of it is shown."""

    id: int
    front: int
    state: Literal["waiting", "running"]
    is_processing: bool
    prompt_tokens: int
    computed_tokens: int
    generated_tokens: int
    age_s: float
    priority: int


async def server_information(service: Service, _call: Call, _body: Any) -> Reply:
    """GET /server_info."""
    status = await service.engine.status()
    setup = service.engine.setup
    model = setup.layout.model
    counts = {name: getattr(status, name) for name in Counters.__struct_fields__}
    card = ModelCard(setup.name, service.names, model.architecture, parameters(model), model.layers, model.vocab)
    return Json(
        ServerInformation(
            versions=versions(),
            pid=os.getpid(),
            model=card,
            settings=public(service.settings),
            plan=planned(setup),
            ranks=status.ranks,
            incidents=service.engine.incidents,
            pages=status.pages,
            counters=Counters(**counts),
            unknown_fields=unknown(service),
        )
    )


async def open_requests(service: Service, call: Call, _body: Any) -> Reply:
    """GET /slots: what others ask with keys of their own is not shown."""
    status = await service.engine.status()
    return Json(
        [
            OpenRequest(
                id=slot.number,
                front=slot.front,
                state=slot.state,
                is_processing=slot.state == "running",
                prompt_tokens=slot.prompt,
                computed_tokens=slot.computed,
                generated_tokens=slot.written,
                age_s=round(slot.age_s, 3),
                priority=slot.priority,
            )
            for slot in status.slots
            if owner(slot.tenant) == call.tenant
        ]
    )


def unknown(service: Service) -> dict[str, int]:
    """The fields that nobody knows, those that came most."""
    if len(service.settings.api_keys) > 1:
        return {"others": total} if (total := service.unknown.total()) else {}
    return dict(service.unknown.most_common(100))


def planned(setup: Setup) -> Plan:
    """The plan of a setup, in numbers."""
    layout = setup.layout
    ranks = (PlannedRank(r, layout.weight_bytes(r), layout.kv_bytes(r, setup.pages)) for r in range(layout.mesh.size))
    shares = layout.shares
    return Plan(
        tensor_parallel_size=layout.mesh.tp,
        expert_parallel=layout.expert_parallel,
        shares={"attention": shares.attention, "mlp": shares.mlp, "vocab": shares.vocab},
        dtype=layout.dtype,
        quantization=setup.quantization.title if setup.quantization else None,
        kv_dtype=layout.kv_dtype,
        device=setup.device,
        threads=setup.threads,
        context=setup.context,
        context_bound=setup.bound,
        cache_tokens=cache_tokens(setup),
        max_num_seqs=setup.limits.sequences,
        max_num_batched_tokens=setup.limits.tokens,
        memory_bytes=setup.memory,
        ranks=tuple(ranks),
    )


def public(settings: Settings) -> dict[str, Any]:
    """The settings as JSON has them; of keys, how many there are."""
    found: dict[str, Any] = msgspec.to_builtins(settings)
    return {**found, "api_keys": len(settings.api_keys)}


@cache
def versions() -> dict[str, str]:
    """Of Python and the packages that matter; read from what is installed, nothing is imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


ROUTES = (
    Route("GET", ("/server_info", "/get_server_info"), server_information,
          "Configuration, plan, ranks and counts of the whole server.", "server", reply=ServerInformation),
    Route("GET", ("/slots",), open_requests, "Requests that wait or run, of the key that asks, without their text.", "server"),
)  # fmt: skip
