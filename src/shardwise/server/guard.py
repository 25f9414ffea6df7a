"""Who may ask at all: hosts, origins of browsers, keys. Decided from the headers alone, whatever the path is."""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
import uuid
from collections.abc import Sequence
from hashlib import sha256

from shardwise.server.refusal import Refusal
from shardwise.server.settings import Settings

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI has them: names in small letters."""

ANY = "*"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("", "0.0.0.0", "::")
KEY_HEADERS = ("authorization", "x-api-key")

_HOST = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::\d{1,5})?")
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SAFE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def values(headers: Headers, name: str) -> list[str]:
    """All values of a header."""
    wanted = name.encode()
    return [value.decode("latin-1").strip() for key, value in headers if key == wanted]


def request_id(headers: Headers) -> str:
    """The client's X-Request-Id where it is short and plain, so that it is safe in logs and headers; else a drawn one."""
    given = [value for key, value in headers if key == b"x-request-id"]
    if len(given) == 1 and _SAFE_ID.fullmatch(given[0]):
        return given[0].decode()
    return uuid.uuid4().hex


def trace_of(headers: Headers) -> str:
    """The client's traceparent (W3C Trace Context), for the log; "" where there is none or it is none."""
    given = values(headers, "traceparent")
    return given[0] if len(given) == 1 and _TRACE.fullmatch(given[0]) else ""


class Guard:
    """Answers from a request's headers. Holds digests of the keys, not the keys."""

    def __init__(self, settings: Settings) -> None:
        self._digests = [sha256(key.encode()).digest() for key in settings.api_keys]
        self._origins = settings.allow_origins
        self._any_host = ANY in settings.allowed_hosts
        self._any_address = settings.host in WILDCARDS
        names = [*LOOPBACK, settings.host, *settings.allowed_hosts, *([socket.gethostname()] if self._any_address else [])]
        self._hosts = {name.strip("[]").rstrip(".").lower() for name in names} - {""}

    # --- the host -----------------------------------------------------------------------------------------------------

    def check_host(self, headers: Headers) -> None:
        """Refuses what was sent to another name: a page that had its own name resolved to this machine (DNS rebinding)."""
        given = values(headers, "host")
        if len(given) != 1:
            raise Refusal(400, f"a request has one Host header; this one has {len(given)}", code="bad_host")
        match = _HOST.fullmatch(given[0])
        if match is None:
            raise Refusal(400, f"the Host header {given[0][:100]!r} is no name or address with a port", code="bad_host")
        name = (match["six"] or match["name"]).rstrip(".").lower()
        if not (self._any_host or name in self._hosts or (self._any_address and is_address(name))):
            raise Refusal(
                403, f"this server is not known as {name[:100]!r}; start it with --allowed-hosts {name[:100]}", code="bad_host"
            )

    # --- browsers -----------------------------------------------------------------------------------------------------

    def origin(self, headers: Headers) -> dict[str, str]:
        """The headers that let a page's script read the answer. Refuses scripts of pages that may not ask; what is no browser
        sends no Origin."""
        given = values(headers, "origin")
        if not given:
            return {}
        if len(given) == 1 and (given[0] in self._origins or ANY in self._origins):
            exposed = "x-request-id, retry-after"
            return {"access-control-allow-origin": given[0], "access-control-expose-headers": exposed, "vary": "origin"}
        # A page that this server gave out itself.
        if len(given) == 1 and given[0].partition("://")[2] in values(headers, "host"):
            return {}
        shown = given[0][:100]
        raise Refusal(
            403, f"pages of {shown!r} may not ask here; start the server with --allow-origin {shown}", code="bad_origin"
        )

    @staticmethod
    def preflight(method: str, headers: Headers) -> dict[str, str] | None:
        """What a browser's question before a request is answered with; None where it is none. It needs no key, for browsers
        send none along."""
        asked = values(headers, "access-control-request-method")
        if method != "OPTIONS" or not asked or not values(headers, "origin"):
            return None
        wanted = values(headers, "access-control-request-headers")
        plain = wanted and re.fullmatch(r"[A-Za-z0-9, _-]{0,1000}", wanted[0])
        return {
            "access-control-allow-methods": asked[0] if asked[0] in ("GET", "POST", "DELETE") else "GET, POST, DELETE",
            "access-control-allow-headers": wanted[0] if plain else "authorization, content-type, x-api-key",
            "access-control-max-age": "600",
        }

    # --- keys ---------------------------------------------------------------------------------------------------------

    def tenant(self, headers: Headers) -> str:
        """Whose key it is, as a short name that does not give the key away; "" where none is asked for. 401 without a key."""
        if not self._digests:
            return ""
        bearer, plain = (values(headers, name) for name in KEY_HEADERS)
        if len(bearer) > 1 or len(plain) > 1:
            raise unauthorised("the key came twice; send one Authorization or x-api-key header")
        given = list(plain)
        for value in bearer:
            scheme, _, token = value.partition(" ")
            if scheme.lower() != "bearer":
                raise unauthorised("the Authorization header must read 'Bearer KEY'")
            given.append(token.strip())
        if not given:
            raise unauthorised("a key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
        found = [self._match(key) for key in given]
        if found[0] is None or any(each != found[0] for each in found):
            raise unauthorised(
                "this key is not known here" if len(found) == 1 else "two keys came, and they are not both right"
            )
        return sha256(b"tenant" + self._digests[found[0]]).hexdigest()[:16]

    def _match(self, key: str) -> int | None:
        """Which key it is. All are compared, in the same time whichever fits: the digests hide how much of one was right."""
        digest, found = sha256(key.encode("latin-1")).digest(), None
        for index, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = index
        return found


def unauthorised(message: str) -> Refusal:
    return Refusal(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
