"""Groups the members of an untrusted tar into samples; nothing is extracted to disk and nothing is unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from engine.errors import DataError
from engine.shards.writer import Quarantined
from engine.storage import tar

IMAGES = ("png", "jpg", "webp", "jpeg")
EXTENSIONS = frozenset((*IMAGES, "cls", "json", "txt"))
MAX_MEMBER = 256 * 2**20
FIX = "restore the file, or remove it and make it again"
_NAME = re.compile(r"((?:[^/\\\x00-\x1f\x7f]+/)*[^./\\\x00-\x1f\x7f][^./\\\x00-\x1f\x7f]*)\.([^/\\\x00-\x1f\x7f]+)")
Skip = Callable[[str, str], None]


@dataclass(frozen=True)
class Group:
    """The members of one sample: its key and, by lower-case extension, where their bytes lie in the tar."""

    key: str
    members: dict[str, tar.Member]


@dataclass(frozen=True)
class Contents:
    """What a tar of ours holds: keys in order, and the entries that were given up."""

    keys: tuple[str, ...]
    quarantined: tuple[Quarantined, ...]


def groups(
    stream: BinaryIO,
    where: str,
    *,
    skip: Skip | None = None,
    extensions: frozenset[str] = EXTENSIONS,
    max_member: int = MAX_MEMBER,
) -> Iterator[Group]:
    """Yield the samples of a tar: adjacent regular files with one path up to the first dot of the file name.

    A member that is not a plain file with a safe relative name, an allowed extension and at most `max_member` bytes, or
    that repeats an earlier one, goes to `skip(name, reason)`; without `skip` it raises DataError about `where`, as does
    any damage to the tar itself. Folders are passed over.
    """
    yield from _grouped(tar.Scan(stream, where), where, skip, extensions, max_member)


def read_tar(stream: BinaryIO, where: str) -> Contents:
    """Scan a tar that this engine wrote: its keys and its quarantined entries; raises DataError about `where`."""
    scan = tar.Scan(stream, where)
    keys = tuple(group.key for group in _grouped(scan, where, None, EXTENSIONS, MAX_MEMBER))
    return Contents(keys, _quarantined(scan.headers, where))


def _grouped(
    scan: tar.Scan, where: str, skip: Skip | None, extensions: frozenset[str], max_member: int
) -> Iterator[Group]:
    def refuse(name: str, reason: str) -> None:
        if skip is None:
            raise DataError(f"{where}, member {name!r}", reason, FIX)
        skip(name, reason)

    seen: set[str] = set()
    group: Group | None = None
    for member in scan:
        if member.kind == "folder":
            continue
        match = _NAME.fullmatch(member.name)
        reason = _unfit(member, match, extensions, max_member)
        if reason or match is None:
            refuse(member.name, reason or "has an unsafe name")
            continue
        key, extension = match[1], match[2].lower()
        if group is None or group.key != key:
            if key in seen:
                refuse(member.name, "its sample was there before (duplicate or scattered key)")
                continue
            if group is not None:
                yield group
            seen.add(key)
            group = Group(key, {})
        if extension in group.members:
            refuse(member.name, "is there twice")
            continue
        group.members[extension] = member
    if group is not None:
        yield group


def _unfit(member: tar.Member, match: re.Match[str] | None, extensions: frozenset[str], max_member: int) -> str | None:
    """Why a member cannot be read, or None; `match` is what `_NAME` made of its name."""
    if member.kind != "file":
        return f"is a {member.kind}"
    parts = member.name.split("/")
    if ".." in parts or "" in parts or not member.name.isprintable() or len(member.name) > 1024:
        return "has an unsafe name"
    if match is None:
        return "has no extension"
    if match[2].lower() not in extensions:
        return f"has the extension .{match[2][:20]}, which is not read"
    if member.size > max_member:
        return f"has {member.size:,} bytes, more than {max_member:,}"
    return None


def _quarantined(headers: dict[str, str], where: str) -> tuple[Quarantined, ...]:
    text = headers.get(tar.QUARANTINE_KEYWORD, "[]")
    try:
        loaded = json.loads(text)
        entries = tuple(Quarantined(**entry) for entry in loaded) if isinstance(loaded, list) else None
    except (ValueError, TypeError, RecursionError):
        entries = None
    if entries is None or not all(entry.is_valid() for entry in entries):
        raise DataError(where, "has a damaged list of quarantined samples", FIX)
    return entries
