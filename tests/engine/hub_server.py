"""A model hub on this machine: the part of the Hugging Face hub's HTTP API that downloading a model uses.

As in the real one, small files come from the hub itself and large ones (here: *.safetensors, *.bin) by a redirect to a store
on another origin, which takes byte ranges and must never see the user's token. Ports are chosen by the system.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

GOOD_TOKEN = "hf_good"
LARGE = (".safetensors", ".bin")


@cache
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Repo:
    """What a model's page holds. `private` is unseen without the token; `gated` is listed, but none of its files are given."""

    files: Mapping[str, bytes]
    private: bool = False
    gated: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted((path, sha256(content)) for path, content in self.files.items())).encode()).hexdigest()


@dataclass(frozen=True)
class Seen:
    """One request as it came; `origin` is "hub" or "store"."""

    origin: str
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub(AbstractContextManager["Hub"]):
    """Serves `repos` by id. A path in `cut` is sent only so many bytes of, once, before the connection is broken."""

    repos: Mapping[str, Repo]
    cut: dict[str, int] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def __enter__(self) -> Hub:
        self._servers = [_serve(self, answer) for answer in (HubAnswer, StoreAnswer)]
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return _origin(self._servers[0])

    @property
    def store(self) -> str:
        return _origin(self._servers[1])

    def blob(self, digest: str) -> bytes | None:
        """A large file by its sha256."""
        contents = (content for repo in self.repos.values() for content in repo.files.values())
        return next((content for content in contents if sha256(content) == digest), None)


def _serve(hub: Hub, answer: type[Answer]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(answer.__name__, (answer,), {"hub": hub}))
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server


def _origin(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """What hub and store share: logging into `seen`, and sending."""

    hub: Hub
    origin = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        token = self.headers["Authorization"]
        self.token = token.removeprefix("Bearer ") if token else None
        self.route = unquote(urlsplit(self.path).path)
        self.hub.seen.append(Seen(self.origin, self.command, self.route, self.headers["Range"], self.token))
        self.answer()

    do_HEAD = do_GET

    def answer(self) -> None:
        raise NotImplementedError

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        """`headers` are named with _ for -."""
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.hub.cut.pop(self.route, None)
        self.wfile.write(body if limit is None else body[:limit])
        if limit is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: `seen` is the log."""


class HubAnswer(Answer):
    """/api/models/{id}[/revision/{revision}], /api/models/{id}/tree/{revision} and /{id}/resolve/{revision}/{file}."""

    origin = "hub"

    def answer(self) -> None:
        parts = self.route.strip("/").split("/")
        if self.token not in (None, GOOD_TOKEN):
            self.refuse(401, "Invalid credentials in Authorization header")
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self.api("/".join(parts[2:4]), parts[4:])
        elif len(parts) >= 5 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.refuse(404, "Sorry, we can't find the page you are looking for.")

    def repo(self, name: str, revision: str) -> Repo | None:
        """The repo, or None after an answer that says why not: like the real hub, 401 to strangers for what is not there."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token != GOOD_TOKEN):
            if self.token is None:
                self.refuse(401, "Invalid username or password.")
            else:
                self.refuse(404, "Repository not found", "RepoNotFound")
            return None
        if revision not in ("main", repo.commit):
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return repo

    def api(self, name: str, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        repo = self.repo(name, revision)
        if repo is None:
            return
        if rest[:1] == ["tree"]:
            self.json([_tree_entry(path, content) for path, content in repo.files.items()])
            return
        siblings = [{"rfilename": path, "size": len(content)} for path, content in repo.files.items()]
        gated = "manual" if repo.gated else False
        self.json({"id": name, "sha": repo.commit, "private": repo.private, "gated": gated, "siblings": siblings})

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self.repo(name, revision)
        if repo is None:
            return
        if repo.gated:
            self.refuse(401 if self.token is None else 403, f"Access to model {name} is restricted.", "GatedRepo")
        elif file not in repo.files:
            self.refuse(404, "Entry not found", "EntryNotFound")
        else:
            content = repo.files[file]
            digest = sha256(content)
            if not file.endswith(LARGE):
                self.send(200, content, ETag=f'"{digest[:40]}"', X_Repo_Commit=repo.commit)
                return
            linked = {"X_Linked_ETag": f'"{digest}"', "X_Linked_Size": str(len(content))}
            self.send(302, b"", Location=f"{self.hub.store}/{digest}", X_Repo_Commit=repo.commit, **linked)

    def json(self, content: object) -> None:
        self.send(200, json.dumps(content).encode(), Content_Type="application/json")

    def refuse(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X_Error_Message": message} | ({"X_Error_Code": code} if code else {})
        self.send(status, json.dumps({"error": message}).encode(), Content_Type="application/json", **headers)


class StoreAnswer(Answer):
    """/{sha256}, whole or from a byte on."""

    origin = "store"

    def answer(self) -> None:
        content = self.hub.blob(self.route.strip("/"))
        if content is None:
            self.send(404)
            return
        wanted = self.headers["Range"]
        if wanted is None:
            self.send(200, content, Accept_Ranges="bytes")
            return
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send(206, content[start:], Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")


def _tree_entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": sha256(content)[:40]}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    return entry
