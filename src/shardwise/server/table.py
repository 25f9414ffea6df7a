"""From a path to the route that serves it, forgiving what clients get wrong: doubled slashes, a missing or a doubled /v1."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from shardwise.server.route import Errors, Route

V1 = "/v1"


@dataclass(frozen=True, slots=True)
class Found:
    """What a path leads to: its routes by method (at least one), and the values of its parameters."""

    routes: dict[str, Route]
    values: dict[str, str]

    def route(self, method: str) -> Route | None:
        """The one of a method; HEAD is answered like GET."""
        return self.routes.get("GET" if method == "HEAD" and "HEAD" not in self.routes else method)

    def errors(self, method: str) -> Errors | None:
        """What makes refusals of a method: as its route has them, or all of the path where none takes it; else OpenAI's."""
        if (route := self.route(method)) is not None:
            return route.errors
        shapes = {each.errors for each in self.routes.values()}
        return shapes.pop() if len(shapes) == 1 else None

    @property
    def allow(self) -> str:
        """As in the header Allow."""
        methods = [*self.routes, *(["HEAD"] if "GET" in self.routes else []), "OPTIONS"]
        return ", ".join(dict.fromkeys(methods))


class Table:
    """All routes. ValueError where two have the same method and path."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.paths: dict[str, dict[str, Route]] = {}
        for route in routes:
            for path in route.paths:
                methods = self.paths.setdefault(path, {})
                if route.method in methods:
                    raise ValueError(
                        f"two routes serve {route.method} {path}: {methods[route.method].summary!r} is one of them"
                    )
                methods[route.method] = route
        patterns = [path for path in self.paths if "{" in path]
        # The one with the most words of its own goes first: /v1/models/{id}/card before /v1/models/{id}.
        patterns.sort(key=lambda path: (-len(path.split("/")) + path.count("{"), path))
        self._patterns = [(compiled(path), self.paths[path]) for path in patterns]

    def find(self, path: str) -> Found | None:
        """`path` is decoded, as it came."""
        for candidate in spellings(path):
            if candidate in self.paths and "{" not in candidate:
                return Found(self.paths[candidate], {})
            for pattern, methods in self._patterns:
                if match := pattern.fullmatch(candidate):
                    return Found(methods, match.groupdict())
        return None

    def nearest(self, path: str) -> str | None:
        """The known path that resembles an unknown one most."""
        near = difflib.get_close_matches(path[:200], list(self.paths), n=1, cutoff=0.7)
        return near[0] if near else None


def spellings(path: str) -> Iterator[str]:
    """What a path may be meant for: itself without superfluous slashes, then with /v1 once where it is missing or doubled."""
    plain = "/" + "/".join(part for part in path.split("/") if part)
    yield plain
    bare = plain
    while bare.startswith(f"{V1}/"):
        bare = bare[len(V1) :]
    yield V1 + bare
    if bare != plain:
        yield bare


def compiled(path: str) -> re.Pattern[str]:
    """The pattern of a path with parameters; one at the end takes slashes too, as names of models have them."""
    parts = re.split(r"\{(\w+)\}", path)
    text = "".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>[^/]+)" for i, part in enumerate(parts))
    return re.compile(text.removesuffix("[^/]+)") + ".+)" if path.endswith("}") else text, re.DOTALL)
