"""`/v1/models`: the names that the model is served under."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shardwise.server.call import Call
from shardwise.server.reply import Json, Reply
from shardwise.server.route import Route
from shardwise.server.service import Service


class ModelReply(msgspec.Struct):
    """One name. `root` is the model behind it; `max_model_len` tokens are the most that a request may have."""

    id: str
    created: int
    root: str
    max_model_len: int
    object: str = "model"
    owned_by: str = "shardwise"
    parent: None = None


class ModelsReply(msgspec.Struct):
    """All names."""

    data: list[ModelReply]
    object: str = "list"


def told(service: Service, name: str) -> ModelReply:
    """One served name."""
    return ModelReply(name, service.created, service.engine.setup.name, service.engine.setup.context)


async def models(service: Service, _call: Call, _parameters: object) -> Reply:
    """All names."""
    return Json(ModelsReply([told(service, name) for name in service.names]))


async def model(service: Service, _call: Call, parameters: Mapping[str, str]) -> Reply:
    """One name; 404 where it is not served."""
    return Json(told(service, service.model(parameters["model"])))


ROUTES = (
    Route("GET", ("/v1/models",), models, "List the names of the model.", "models", reply=ModelsReply),
    Route("GET", ("/v1/models/{model}",), model, "Describe one of the names.", "models", reply=ModelReply),
)
