"""What a client is told when it gets nothing: a status and a message, in the shape of the API that was asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from shardwise.errors import QueueFull, RequestError, ShardwiseError, Unavailable
from shardwise.sched.checks import in_json

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    414: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
    505: "invalid_request_error",
}
"""OpenAI's error types by status."""

RETRY_S = 5
"""When to come back where nobody knows better: after a restart, or to another replica."""

FIELD = re.compile(
    r"(?:the conversation: |a (?:text in|key of) |unknown field ')?([a-z]+[a-z_0-9]*(?:\.[a-z_0-9]+)*)"
    r"(?=\[|'| is | has | are | takes | asks | says | does | cannot | must | needs | holds | sets |: )"
)
"""A field's name, up to a place in a list, where a message of `sched.checks`, or of what calls it, begins with it."""

BROKEN = "the server failed on this request; its log says more under the request id"


class Refusal(ShardwiseError):
    """Ends a request with `status`. `param` is the field at fault, `code` a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(retry_after_s)

    @property
    def kind(self) -> str:
        return KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def openai(self) -> dict[str, object]:
        """The body that clients of OpenAI's API read."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code or self.phrase}}

    @property
    def phrase(self) -> str:
        """A word for the status where nothing better is known: `not_found`."""
        return HTTPStatus(self.status).phrase.lower().replace(" ", "_").replace("-", "_")

    @staticmethod
    def of(error: Exception) -> Refusal:
        """What a client may know of an error. Anything unexpected is told as a server error and nothing else."""
        if isinstance(error, Refusal):
            return error
        if isinstance(error, RequestError):
            # Such a message begins with what it is about: the field, or a part of it.
            said = in_json(str(error))
            field = FIELD.match(said)
            return Refusal(400, said, param=field[1] if field else None)
        if isinstance(error, QueueFull):
            return Refusal(429, str(error), code="queue_full", retry_after_s=error.retry_after_s)
        if isinstance(error, Unavailable):
            return Refusal(503, str(error), code="unavailable", retry_after_s=RETRY_S)
        return Refusal(500, BROKEN)
