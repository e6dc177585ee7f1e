"""Which places a run may read and write: URLs are checked and brought to one form before fsspec sees them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from engine.errors import ConfigError

REMOTE_SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "memory": "memory"}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")
_FIX = "use a local path, file://, s3://, gs://, az:// or memory://"


def normalise(url: str) -> str:
    """Return an absolute local path, or `scheme://bucket/key` with scheme s3, gs, az or memory and no trailing slash.

    Local paths may hold any printable character; `~` and `..` are resolved. In URLs, `..`, `?`, `#`, user names or
    keys, empty parts and chained `::` are refused. Raises ConfigError.
    """
    if not url or any(ord(letter) < 32 or ord(letter) == 127 for letter in url):
        raise ConfigError(repr(url), "is not a path or URL", _FIX)
    if "::" in url:
        raise ConfigError(url, "chained URLs are not allowed", _FIX)
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    if match is None or not (url[match.end() :].startswith("//") or scheme in REMOTE_SCHEMES or scheme == "file"):
        return _local(url)
    if not url[match.end() :].startswith("//"):
        raise ConfigError(url, "has one slash or none after the scheme", f"write {scheme}://...")
    rest = url[match.end() + 2 :]
    if "@" in rest.split("/")[0]:
        raise ConfigError(
            f"{scheme}://...", "holds a user name or a key", "give credentials in the environment or a profile"
        )
    if scheme == "file":
        if not rest.startswith("/"):
            raise ConfigError(url, "names a host", "write file:///absolute/path")
        _check_parts(url, rest.strip("/").split("/"))
        return _local(rest)
    if scheme not in REMOTE_SCHEMES:
        raise ConfigError(url, f"scheme {scheme} is not supported", _FIX)
    parts = rest.removesuffix("/").split("/")
    _check_parts(url, parts)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", parts[0]):
        raise ConfigError(url, f"{parts[0]!r} is not the name of a bucket or container", "write scheme://bucket/folder")
    return f"{REMOTE_SCHEMES[scheme]}://{'/'.join(parts)}"


def is_remote(url: str) -> bool:
    """Whether a URL in the form of `normalise` lies outside the local file system."""
    return "://" in url


def _check_parts(url: str, parts: list[str]) -> None:
    if any(part in ("", ".", "..") for part in parts):
        raise ConfigError(url, "has an empty, '.' or '..' part", "write the path out")
    if any(mark in url for mark in "?#*\\"):
        raise ConfigError(url, "has one of ? # * \\ in it", "choose another name")


def _local(path: str) -> str:
    try:
        return os.path.abspath(Path(path).expanduser())  # noqa: PTH100 - collapses '..' without following links
    except RuntimeError as error:
        raise ConfigError(path, f"cannot be expanded ({error})", "write the path out") from None
