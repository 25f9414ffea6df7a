"""What a request offers a model to call, and whether it has to: plain values, whatever interface they came through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON schema of an object; `strict` asks to hold to it."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Named:
    """The one tool that has to be called."""

    name: str


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | Named
"""`auto`: the model decides. `required` and `Named` are kept by a grammar."""


def callable_tools(tools: Sequence[Tool], choice: ToolChoice) -> tuple[Tool, ...]:
    """Those of `tools` that `choice` lets the model call."""
    if choice == "none":
        return ()
    return tuple(tool for tool in tools if not isinstance(choice, Named) or tool.name == choice.name)
