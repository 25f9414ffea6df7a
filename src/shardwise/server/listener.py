"""The one socket that listens: bound before anything is loaded, so that a port in use is said at once, with its holder."""

from __future__ import annotations

import errno
import ipaddress
import itertools
import socket
from typing import Any

from shardwise.errors import UserError

BACKLOG = 2048
"""Connections that may wait to be accepted; the kernel takes no more than net.core.somaxconn."""


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: any that is free). It accepts once a server runs on it. UserError where it
    cannot be had, with what to do instead."""
    try:
        found = socket.getaddrinfo(host or "127.0.0.1", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host!r}: {reason}; give an address of this machine, as 127.0.0.1 or 0.0.0.0") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    # A port whose last server has just ended is free, though its connections linger.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise UserError(_why(error, host, port)) from None
    sock.setblocking(False)
    return sock


def others_reach(host: str) -> bool:
    """Whether other machines can reach what listens on `host`; of what is no address, `listen` says so."""
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host or "127.0.0.1", None)}
    except (OSError, UnicodeError):
        return False
    return not all(ipaddress.ip_address(address).is_loopback for address in found)


def url(sock: socket.socket) -> str:
    """The address of a listening socket as a client of this machine writes it, without a slash at its end."""
    return address(*sock.getsockname()[:2])


def address(host: str, port: int) -> str:
    """The same of a host that is listened on."""
    where = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{where}:{port}"


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use{_holder(port)}; use --port {port + 1 if port < 65535 else port - 1}, or end that"
    if error.errno == errno.EACCES:
        return f"port {port} may not be used by this user: ports below 1024 are the system's; use --port 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: this machine has no such address; use 127.0.0.1, or 0.0.0.0 for all that it has"
    return f"{host}:{port} cannot be listened on: {error.strerror}; use another --host or --port"


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may know."""
    import psutil  # type: ignore[import-untyped]  # only then: it takes 20 ms

    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
                process = psutil.Process(found.pid)
                return f" by process {found.pid} ({_command(process)})"
    except (psutil.Error, OSError):
        pass
    return ""


def _command(process: Any) -> str:
    """What a process was started as, without its flags, which may hold keys."""
    words = list(itertools.takewhile(lambda word: word == "-m" or not word.startswith("-"), process.cmdline()))
    command = " ".join(words) or process.name()
    return command if len(command) <= 80 else command[:77] + "..."
