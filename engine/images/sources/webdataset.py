"""WebDataset tars: each image is a byte range of a tar, so that it is read again without scanning."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import BinaryIO

from engine.errors import DataError
from engine.images.decode import BadImage
from engine.images.labels import parse_label
from engine.images.sources import layout
from engine.images.sources.base import (
    GROUP,
    Place,
    Ref,
    Rejected,
    Root,
    decode_name,
    encode_name,
    find_files,
    read_by_file,
)
from engine.spec.models import ImagesSpec, WebDatasetSource
from engine.storage.parallel import mapped
from engine.storage.paths import RemotePath

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "gif")
MAX_LABEL_BYTES = 1 << 20
GAP, SPAN = 1 << 18, 1 << 23  # bytes between images that are read rather than skipped, and of one request
REQUESTS = 4  # at once; each holds up to SPAN
COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))


class Tars:
    """Consecutive members with one name up to the first dot are a sample, as webdataset has it."""

    def __init__(
        self,
        root: Root,
        names: Sequence[str],
        images: ImagesSpec,
        *,
        where: str,
        label_key: str,
        class_names: tuple[str, ...] | None,
        given: str | None = None,
    ) -> None:
        self.root, self.names, self.where, self.given = root, tuple(names), where, given
        self.max_bytes, self.label_key = images.max_bytes, label_key
        self.class_names = class_names

    def check(self) -> None:
        """Refuse tars of several splits, and look for one image with a label in the first tar; raises DataError."""
        if self.given is not None:
            layout.check_files(self.root, self.names, self.given, self.where)
        path = self.root / self.names[0]
        with _opened(path) as file:
            head = file.read(6)
        for signature, name in COMPRESSED:
            if head.startswith(signature):
                raise DataError(
                    self.where,
                    f"{path} is compressed with {name}",
                    "unpack it to a plain tar: images are read by byte range",
                )
        first = next((entry for entry in self._samples(self.names[0])), None)
        if first is None:
            raise DataError(self.where, f"{path} holds no image", "expected members such as 0001.jpg and 0001.cls")
        if isinstance(first, Rejected) and first.reason == "no_label":
            raise DataError(
                self.where,
                f"{path}: sample {first.key} has no label ({first.detail})",
                "add .cls members or set source.label_key",
            )

    def size(self) -> int | None:
        """Only a scan can tell."""
        return None

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        group: list[Ref | Rejected] = []
        for name in self.names:
            for entry in self._samples(name):
                group.append(entry)
                if len(group) == GROUP:
                    yield group
                    group = []
        if group:
            yield group

    def _samples(self, name: str) -> Iterator[Ref | Rejected]:
        uri, seen, current = encode_name(name), set[str](), ""
        members: dict[str, tarfile.TarInfo] = {}
        try:
            with _opened(self.root / name) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen; a tar may have a million
                    if not member.isfile() or member.issparse() or member.name.rpartition("/")[2].startswith("."):
                        continue
                    key, extension = split_member(member.name)
                    if key != current:
                        if members:
                            yield self._sample(uri, current, members, file, seen)
                        current, members = key, {}
                    members.setdefault(extension, member)
                if members:
                    yield self._sample(uri, current, members, file, seen)
        except tarfile.ReadError as error:
            yield Rejected(uri, "broken_tar", f"{error}; what lies behind cannot be read")
        except OSError as error:
            yield Rejected(uri, "unreadable", error.strerror or str(error))

    def _sample(
        self, uri: str, name: str, members: dict[str, tarfile.TarInfo], file: BinaryIO, seen: set[str]
    ) -> Ref | Rejected:
        key = f"{uri}/{encode_name(name)}"
        if name in seen:
            return Rejected(f"{key}#{len(seen)}", "duplicate_key", f"{key} appears twice in the tar")
        seen.add(name)
        image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
        if image is None:
            return Rejected(key, "no_image", f"members: {', '.join(sorted(members))[:100]}")
        label = self._label(members, file)
        if isinstance(label, BadImage):
            return Rejected(key, label.reason, label.detail)
        if image.size == 0:
            return Rejected(key, "empty_file", "no bytes", label)
        if image.size > self.max_bytes:
            return Rejected(
                key, "too_large_file", f"{image.size:,} bytes, images.max_bytes is {self.max_bytes:,}", label
            )
        return Ref(key, label, Place(uri, offset=image.offset_data, size=image.size))

    def _label(self, members: dict[str, tarfile.TarInfo], file: BinaryIO) -> int | str | BadImage:
        source = members.get("cls") or members.get("json")
        if source is None:
            return BadImage("no_label", "neither .cls nor .json beside the image")
        if source.size > MAX_LABEL_BYTES:
            return BadImage("bad_label", f"label member of {source.size:,} bytes")
        position = file.tell()
        file.seek(source.offset_data)
        data = file.read(source.size)
        file.seek(position)
        try:
            text = data.decode("utf-8-sig")
            if "cls" in members:
                return parse_label(_number(text.strip()))
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            return BadImage("bad_label", str(error)[:100])
        if not isinstance(fields, dict) or self.label_key not in fields:
            return BadImage("no_label", f"the .json has no key {self.label_key!r}")
        return parse_label(fields[self.label_key])

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes | BadImage]]:
        def read_tar(uri: str, positions: list[int]) -> Iterator[tuple[int, bytes | BadImage]]:
            path, ordered = self.root / decode_name(uri), sorted(positions, key=lambda p: places[p].offset)
            if isinstance(path, RemotePath):
                yield from _remote_ranges(path, ordered, places)
                return
            with path.open("rb") as file:
                for position in ordered:
                    yield position, _range(file, places[position])

        return read_by_file(places, read_tar)


def _range(file: BinaryIO, place: Place) -> bytes | BadImage:
    file.seek(place.offset)
    return _whole(file.read(place.size), place.size)


def _opened(path: Root) -> BinaryIO:
    return path.open() if isinstance(path, RemotePath) else path.open("rb")


def _remote_ranges(
    path: RemotePath, ordered: Sequence[int], places: Sequence[Place]
) -> Iterator[tuple[int, bytes | BadImage]]:
    """Images of a remote tar by byte range; those that lie close together are one request, several requests run at once."""
    found = path.entry()
    if found is None:
        raise FileNotFoundError(2, "no such file", str(path))
    size = found.size

    def fetched(span: list[int]) -> list[tuple[int, bytes | BadImage]]:
        start = min(places[span[0]].offset, size)
        end = min(max(places[p].offset + places[p].size for p in span), size)
        data = path.read(start, end) if end > start else b""
        cuts = [(p, places[p].offset - start, places[p].size) for p in span]
        return [(p, _whole(data[offset : offset + length], length)) for p, offset, length in cuts]

    for part in mapped(fetched, _spans(ordered, places), REQUESTS):
        yield from part


def _spans(ordered: Sequence[int], places: Sequence[Place]) -> Iterator[list[int]]:
    span: list[int] = []
    for position in ordered:
        place = places[position]
        if span and (
            place.offset - places[span[-1]].offset - places[span[-1]].size > GAP
            or place.offset + place.size - places[span[0]].offset > SPAN
        ):
            yield span
            span = []
        span.append(position)
    if span:
        yield span


def _whole(data: bytes, size: int) -> bytes | BadImage:
    return data if len(data) == size else BadImage("truncated", "the tar ends within the image")


def split_member(name: str) -> tuple[str, str]:
    """(key, lower-case extension) of a member name: split at the first dot of the last path part."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _number(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdecimal() else text


def open_sets(source: WebDatasetSource, images: ImagesSpec, *, download: bool) -> dict[str, Tars]:
    """The tars, and the test tars where they are given; tars of the test set are no part of the main one."""
    where = ("source.path", "source.test_path")
    test = find_files(source.test_path, ".tar", where[1]) if source.test_path is not None else None
    main = layout.without(find_files(source.path, ".tar", where[0]), test, where[0])
    tars = partial(Tars, images=images, label_key=source.label_key, class_names=source.class_names)
    sets = {"": tars(*main, where=where[0], given=source.path)}
    if test is not None:
        sets["test"] = tars(*test, where=where[1], given=source.test_path)
    return sets
