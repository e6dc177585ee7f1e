"""The tar format, both ways and no more than image sets need: USTAR out, and a reader that trusts no byte of what it
reads."""

from __future__ import annotations

import functools
import io
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from engine.errors import DataError

BLOCK = 512
RECORD = 20 * BLOCK
MAX_SIZE = 8**11 - 1
_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
MAX_META = 64 * 2**20
QUARANTINE_KEYWORD = "MIMEO.quarantined"
_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"1": "hard link", b"2": "symbolic link", b"3": "device"}
_KINDS |= {b"4": "device", b"5": "folder", b"6": "pipe"}
_GLOBAL_NAME = b"././@PaxHeader"


def header(name: bytes, size: int, *, kind: bytes = b"0", mode: int = 0o644) -> bytes:
    """One 512-byte USTAR header: owner, times and links are zero, so that equal members are equal bytes.

    `name`: at most 100 bytes; `size`: at most 8 GiB - 1. Source: POSIX.1-2017, pax, "ustar Interchange Format".
    Packed by hand around what is the same in all headers: four times as fast as `struct`.
    """
    if not 0 < len(name) <= 100 or not 0 <= size <= MAX_SIZE:
        raise ValueError(f"{name!r} of {size} bytes does not fit a USTAR header")
    before, between, after, added = _constant(kind, mode)
    length = b"%011o\0" % size
    checksum = b"%06o\0 " % (added + sum(name) + sum(length))
    return b"".join((name.ljust(100, b"\0"), before, length, between, checksum, after))


@functools.lru_cache(maxsize=16)
def _constant(kind: bytes, mode: int) -> tuple[bytes, bytes, bytes, int]:
    """The fields of a header between name, size and checksum, and the sum of their bytes and of a blank checksum."""
    octal = b"%07o\0"
    fields = (octal % mode, octal % 0, octal % 0, b"", b"%011o\0" % 0, b" " * 8, kind)
    whole = _USTAR.pack(b"", *fields, b"", b"ustar\x0000", b"", b"", b"", b"", b"")
    return whole[100:124], whole[136:148], whole[156:], sum(whole)


def padding(size: int, unit: int = BLOCK) -> bytes:
    """The zeros that fill `size` bytes up to a whole number of units."""
    return bytes(-size % unit)


def global_header(keyword: str, value: str) -> bytes:
    """A PAX global header (header, data, padding) with one record `keyword=value`, both ASCII."""
    body = f" {keyword}={value}\n".encode("ascii")
    digits = 1
    while len(str(len(body) + digits)) != digits:
        digits += 1
    record = str(len(body) + digits).encode() + body
    return header(_GLOBAL_NAME, len(record), kind=b"g", mode=0) + record + padding(len(record))


class Member(NamedTuple):
    """One entry of a tar: its name as written there (unchecked), its kind, and where its bytes lie."""

    name: str
    kind: str
    offset: int
    size: int


class Scan:
    """Iterates over the entries of an uncompressed tar (USTAR, PAX or GNU) without reading their contents.

    Every header's checksum and every size is checked, and the end-of-archive mark must be there, so that a tar cut at
    any byte raises DataError about `where`; `lenient` lets a tar end behind any whole member, as other readers do. The
    archive begins at byte `start`. `headers` holds the PAX global records met so far, `stop` is where the archive ends,
    once it is read.
    """

    def __init__(self, stream: BinaryIO, where: str, *, start: int = 0, lenient: bool = False) -> None:
        self.headers: dict[str, str] = {}
        self.stop = start
        self._stream, self._where, self._start, self._lenient = stream, where, start, lenient
        self._end = stream.seek(0, io.SEEK_END)

    def __iter__(self) -> Iterator[Member]:
        offset, extended = self._start, dict[str, str]()
        if self._end <= offset:
            raise self._broken("is empty")
        while True:
            self.stop = offset
            if self._lenient and offset == self._end:
                return
            block = self._read(offset, BLOCK, "a header")
            if not any(block):
                if not self._lenient and any(self._read(offset + BLOCK, BLOCK, "the end-of-archive mark")):
                    raise self._broken("goes on after its end")
                return
            member, kind = self._member(block, offset + BLOCK, extended)
            offset = member.offset + -(-member.size // BLOCK) * BLOCK
            if kind in (b"x", b"g", b"L", b"K"):
                self._meta(kind, member, extended)
                continue
            if offset > self._end:
                raise self._broken(f"is cut short inside {member.name!r}")
            yield member
            extended = {}

    def _member(self, block: bytes, start: int, extended: dict[str, str]) -> tuple[Member, bytes]:
        name, _, _, _, size, _, checksum, kind, _, magic, _, _, _, _, prefix = _USTAR.unpack(block)
        length = _number(size)
        if length is None or _number(checksum) != sum(block) - sum(checksum) + 8 * 32:
            raise self._broken(
                "is not a tar" if start == self._start + BLOCK else f"has a damaged header at byte {start - BLOCK}"
            )
        path = _text(name)
        if magic == b"ustar\x0000" and prefix.rstrip(b"\0"):
            path = f"{_text(prefix)}/{path}"
        if kind in (b"x", b"g", b"L", b"K"):
            return Member(path, "meta", start, length), kind
        length = int(extended.get("size", length))
        what = _KINDS.get(kind, "special entry")
        if any(key.startswith("GNU.sparse") for key in extended):
            what = "special entry"
        if kind == b"S":
            start = self._behind_map(block[482], start)
        return Member(extended.get("path", path), what, start, length if what in ("file", "special entry") else 0), kind

    def _behind_map(self, more: int, start: int) -> int:
        """Where the bytes of an old GNU sparse entry begin: behind the blocks that go on with its map."""
        while more:
            more, start = self._read(start, BLOCK, "a sparse map")[504], start + BLOCK
        return start

    def _meta(self, kind: bytes, member: Member, extended: dict[str, str]) -> None:
        """Take in a PAX or GNU header that describes the next entry (or, global, all of them)."""
        if member.size > MAX_META:
            raise self._broken("has an oversized extended header")
        body = self._read(member.offset, member.size, "an extended header")
        if kind == b"L":
            extended["path"] = _text(body)
        elif kind != b"K":
            (self.headers if kind == b"g" else extended).update(self._pax(body))

    def _pax(self, body: bytes) -> Iterator[tuple[str, str]]:
        at = 0
        while at < len(body):
            digits, space, _ = body[at : at + 20].partition(b" ")
            length = int(digits) if space and digits.isdigit() else 0
            keyword, equals, value = body[at + len(digits) + 1 : at + length - 1].partition(b"=")
            if not equals or body[at + length - 1 : at + length] != b"\n":
                raise self._broken("has a damaged extended header")
            if keyword == b"size" and not re.fullmatch(rb"[0-9]{1,18}", value):
                raise self._broken("has a damaged extended header")
            yield _text(keyword), _text(value)
            at += length

    def next_archive(self) -> int | None:
        """Where another tar begins behind this one, as `cat a.tar b.tar` makes it; None where only zeros follow, or
        none."""
        for offset in range(self.stop, min(self._end, self.stop + MAX_META), RECORD):
            self._stream.seek(offset)
            block = self._stream.read(RECORD)
            if any(block):
                first = next(i for i in range(0, len(block), BLOCK) if any(block[i : i + BLOCK]))
                return offset + first if block[first + 257 : first + 262] == b"ustar" else None
        return None

    def _read(self, offset: int, size: int, what: str) -> bytes:
        self._stream.seek(offset)
        data = self._stream.read(size)
        if offset == 0 and data[:2] == b"\x1f\x8b":
            raise self._broken("is compressed")
        if len(data) != size:
            raise self._broken(f"is cut short: {what} is missing")
        return data

    def _broken(self, what: str) -> DataError:
        return DataError(self._where, what, "restore the file, or remove it and make it again")


def _number(field: bytes) -> int | None:
    """An octal field, or GNU's base-256 for sizes over 8 GiB; None where it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip(b" ") or b"0"
    return int(digits, 8) if not digits.strip(b"01234567") else None


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8", "surrogateescape")
