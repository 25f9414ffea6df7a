"""The library of compiled kernels: whether there is one, which instructions it uses, and its functions.

It is built when the package is installed, if a C++ compiler is found; without it torch computes everything. Knows no kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from shardwise import env
from shardwise.errors import UserError

PATHS = ("scalar", "avx2", "avx512", "avx512_vnni", "amx")
"""Kinds of CPU that kernels are compiled for, each with all that the ones before it have; `native/cpu.h` counts them alike."""

POINTER, WHOLE, REAL, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
"""Types of arguments: a `data_ptr()`, an int64_t, a float, an int."""


def function(name: str, *arguments: type, result: type | None = None) -> Callable[..., Any]:
    """The library's function `name`. Pointers must stay valid until it returns; the interpreter's lock is not held."""
    found = _library()
    assert found is not None, "ask `available` first"
    named: Any = getattr(found, name)
    named.argtypes, named.restype = arguments, result
    return named  # type: ignore[no-any-return]


def available() -> bool:
    """Whether compiled kernels are there and wanted."""
    return _library() is not None


def path() -> str | None:
    """The kind of CPU whose kernels are in use, one of PATHS; None where torch computes."""
    found = _library()
    return None if found is None else PATHS[found.sw_active()]


def note() -> str | None:
    """One line for the user where the machine could do better than it does; None where all is well."""
    if env.kernels() == "torch":
        return f"kernels: torch's, as {env.KERNELS} says"
    if _file() is None:
        return "kernels: torch's, which are slower: there was no C++ compiler to build others with; add one, install anew"
    return "kernels: plain C++, for this CPU has no AVX2" if path() == "scalar" and env.kernels() is None else None


def _file() -> Path | None:
    here = Path(__file__).parent
    return next((file for file in here.glob("_native*.so")), None)


@cache
def _library() -> ctypes.CDLL | None:
    """The library, once a process, set to the path that the environment asks for."""
    file, asked = _file(), env.kernels()
    if asked is not None and asked not in ("torch", *PATHS):
        raise UserError(f"{env.KERNELS}={asked}: it is one of torch, {', '.join(PATHS)}")
    if file is None or asked == "torch":
        if asked in PATHS:
            raise UserError(f"{env.KERNELS}={asked}: there are no compiled kernels; add a C++ compiler, and install anew")
        return None
    found = ctypes.CDLL(str(file))
    if asked is not None and not found.sw_use(PATHS.index(asked)):
        raise UserError(f"{env.KERNELS}={asked}: this CPU has not what that needs; it can do {PATHS[found.sw_best()]}")
    return found
