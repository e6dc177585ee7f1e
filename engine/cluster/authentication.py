"""Who may talk to Ray: the mode that the environment asks for, and what keeps a private Ray to its own user."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from engine.storage import temporary

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
MODES = ("token", "disabled")
CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # where it is off, a node's address is 127.0.0.1, on every system
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check_mode() -> None:
    """Refuse a RAY_AUTH_MODE that Ray does not know (ConfigError): it would take it for "disabled" without a word."""
    mode = os.environ.get(MODE)
    if mode is not None and mode.lower() not in MODES:
        raise ConfigError(
            MODE, f"{mode!r} is no mode of Ray, which would then ask nobody for a token", "set it to token"
        )


@contextmanager
def private() -> Iterator[Path]:
    """The folder of a private Ray, with the environment under which it and what joins it ask for a token of its own.

    Ray opens its folders to all users, so they lie in one of mode 0700 that Ray does not know of; the token's file is
    0600. Ray's address is that of the loopback device inside the block, and folder and environment are as before after
    it.
    """
    import ray._private.ray_constants as constants

    clusters = constants.ENABLE_RAY_CLUSTER  # read from the environment when Ray was imported
    loopback = {CLUSTERS: "0", **dict.fromkeys(INTERFACES, _loopback_device())}
    with temporary.folder("ray", "/tmp" if Path("/tmp").is_dir() else None) as outer:
        token = outer / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        try:
            with _environment({**loopback, MODE: "token", TOKEN_PATH: str(token), TOKEN: None}):
                constants.ENABLE_RAY_CLUSTER = False
                _read_again()
                yield outer / "ray"
        finally:
            constants.ENABLE_RAY_CLUSTER = clusters
            _read_again()


def _loopback_device() -> str | None:
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


def _read_again() -> None:
    """Let this process's Ray forget the mode and the token that it read before."""
    import ray

    compiled: Any = ray._raylet
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set(changes)
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
