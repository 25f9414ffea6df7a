"""`/start_profile` and `/stop_profile`, as vLLM has them: what each rank does, recorded in a file of its own.

Only with `--profiler-dir`: who may ask the server must not be able to fill a disk that nobody set aside for it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shardwise.engine.profile import Bounds, Trace
from shardwise.errors import Conflict
from shardwise.server.call import Call
from shardwise.server.refusal import Refusal
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.service import Service

FLAG = "--profiler-dir"


class Begun(msgspec.Struct, frozen=True):
    """All ranks record, from their next step on. It ends with `/stop_profile`, or by itself after so many steps or seconds."""

    folder: str
    max_steps: int
    max_seconds: float
    status: Literal["recording"] = "recording"


class TraceFile(msgspec.Struct, frozen=True):
    """What one rank recorded: a Chrome trace, for Perfetto or chrome://tracing. `path` is null where no step came."""

    rank: int
    path: str | None
    bytes: int
    steps: int


class Ended(msgspec.Struct, frozen=True):
    """The files, one a rank, complete."""

    traces: tuple[TraceFile, ...]
    status: Literal["written"] = "written"


async def start_profile(service: Service, _call: Call, _body: Any) -> Reply:
    """POST /start_profile."""
    settings, folder = service.settings, folder_of(service)
    await ask(service, Bounds(folder, settings.max_profile_steps, settings.profile_timeout_s))
    return Json(Begun(folder, settings.max_profile_steps, settings.profile_timeout_s))


async def stop_profile(service: Service, _call: Call, _body: Any) -> Reply:
    """POST /stop_profile. 500 where a rank could not write its file, with the reason; the server goes on."""
    folder_of(service)
    traces = await ask(service, None)
    if failed := [f"rank {trace.rank}: {trace.error}" for trace in traces if trace.error]:
        there = ", ".join(trace.path for trace in traces if trace.path)
        raise Refusal(500, f"{'; '.join(failed)}{f' (written: {there})' if there else ''}", code="profile_failed")
    return Json(Ended(tuple(TraceFile(each.rank, each.path or None, each.bytes, each.steps) for each in traces)))


def folder_of(service: Service) -> str:
    """Where traces go; 404 where the server was given no such folder."""
    if service.settings.profiler_dir is None:
        raise Refusal(404, f"profiling is off; start the server with {FLAG} DIR to have it on", code="profiling_off")
    return service.settings.profiler_dir


async def ask(service: Service, bounds: Bounds | None) -> tuple[Trace, ...]:
    try:
        return await service.engine.profile(bounds)
    except Conflict as error:
        raise Refusal(409, str(error), code="profiling") from None


ROUTES = (
    Route("POST", ("/start_profile",), start_profile, f"Has every rank record what it does, with {FLAG}.", "server",
          reply=Begun),
    Route("POST", ("/stop_profile",), stop_profile, "Ends the recording, and names the file of each rank.", "server",
          reply=Ended),
)  # fmt: skip
