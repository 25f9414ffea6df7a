"""What a process writes on its lines: text for people, or JSON for collectors, one record a line, whatever it holds.

Knows no server; processes that nobody told otherwise write text.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType

FORMATS = ("text", "json")
TEXT = "%(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """A record as one line of JSON in ASCII: time (UTC), level, logger, message, pid; where there are, the id of the request
    (`extra={"request_id": ...}`) and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if (request := getattr(record, "request_id", None)) is not None:
            found["request_id"] = request
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found)


def begin(form: str, *, verbose: bool = False) -> None:
    """Has this process log on standard error in one of FORMATS: what warns; with `verbose` all of shardwise's own. In JSON
    Python's warnings and what ends a thread or the process are records as well. Handlers that are there already stay."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("shardwise").setLevel(logging.DEBUG if verbose else logging.WARNING)
    if in_json():
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = _ended


def in_json() -> bool:
    """Whether this process writes JSON."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)


def line(text: str, level: int = logging.INFO, lead: str = "") -> str:
    """What people are told outside of the log, as a line: `text` behind `lead`; in JSON a record of level `level`."""
    if not in_json():
        return f"{lead}{text}\n"
    return JsonLines().format(logging.LogRecord("shardwise", level, "", 0, "%s", (text,), None)) + "\n"


def trace(error: BaseException) -> None:
    """Writes the traceback of an error, for those who asked to see them."""
    if in_json():
        _uncaught(type(error), error, error.__traceback__)
    else:
        traceback.print_exception(error)


def _uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    logging.getLogger("shardwise").error("%s: %s", kind.__name__, error, exc_info=(kind, error, where))


def _ended(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is not None:
        _uncaught(given.exc_type, given.exc_value, given.exc_traceback)
