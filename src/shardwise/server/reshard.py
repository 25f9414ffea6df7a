"""`POST /admin/reshard`: another number of ranks, or other shares, while the server serves. Knows no ranks."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from shardwise.engine.bridge import MOST_RANKS
from shardwise.errors import Conflict, UserError
from shardwise.server.call import Call
from shardwise.server.listener import others_reach
from shardwise.server.refusal import Refusal
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.service import Service


class ReshardBody(msgspec.Struct, kw_only=True):
    """So many ranks of equal shares, or one share for each rank."""

    tp: Annotated[int, Meta(ge=1, le=MOST_RANKS, description="How many ranks.")] | None = None
    shares: (
        Annotated[
            list[Annotated[float, Meta(gt=0)]],
            Meta(min_length=1, max_length=MOST_RANKS, description="Proportions, one a rank."),
        ]
        | None
    ) = None


class Resharded(msgspec.Struct, frozen=True):
    """What serves now: `max_model_len` tokens are the most of a request, `max_num_seqs` sequences run at once, and `kv_pages`
    are those of each group of the cache."""

    tp: int
    shares: tuple[float, ...]
    max_model_len: int
    max_num_seqs: int
    kv_pages: tuple[int, ...]
    status: Literal["serving"] = "serving"


async def reshard(service: Service, _call: Call, body: ReshardBody) -> Reply:
    """Answered when the new group serves. Open requests go on; those that have no room there end with 503."""
    if not service.settings.api_keys and others_reach(service.settings.host):
        raise Refusal(403, "without a key, only this machine may do that: start the server with --api-key", code="no_key")
    try:
        await service.engine.recut(wanted(body))
    except Conflict as error:
        raise Refusal(409, str(error), code="reforming", retry_after_s=1) from None
    except UserError as error:
        raise Refusal(400, str(error), param="tp" if body.shares is None else "shares", code="cannot_be_cut") from None
    setup = service.engine.setup
    layout = setup.layout
    return Json(Resharded(layout.mesh.tp, layout.shares.attention, setup.context, setup.limits.sequences, setup.pages))


def wanted(body: ReshardBody) -> tuple[float, ...]:
    """The share of each rank."""
    if body.shares is None:
        if body.tp is None:
            raise Refusal(400, 'say how many ranks, as {"tp": 3}, or the share of each, as {"shares": [3, 1]}', param="tp")
        return (1.0,) * body.tp
    if body.tp is not None and body.tp != len(body.shares):
        raise Refusal(400, f"tp is {body.tp}, and there are {len(body.shares)} shares; give one a rank", param="shares")
    return tuple(body.shares)


ROUTES = (
    Route("POST", ("/admin/reshard", "/v1/admin/reshard"), reshard, "Cuts the model over other ranks, while it serves.",
          "server", body=ReshardBody, reply=Resharded, example={"tp": 2}),
)  # fmt: skip
