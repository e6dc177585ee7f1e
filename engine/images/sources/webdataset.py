"""WebDataset tars: each image is a byte range of a tar, so that it is read again without scanning."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from engine.errors import ConfigError, DataError
from engine.images.decode import BadImage
from engine.images.labels import parse_label
from engine.images.sources import split_folders
from engine.images.sources.source import (
    GROUP,
    IMAGE_EXTENSIONS,
    Place,
    Ref,
    Rejected,
    Root,
    decode_name,
    encode_name,
    find_files,
    hidden,
    open_file,
    read_by_file,
)
from engine.spec.recipe import ImagesSpec, WebDatasetSource
from engine.storage.parallel import mapped
from engine.storage.paths import RemotePath
from engine.storage.tar import Member, Scan

CHECKED = 2_000  # samples that are looked at before Ray starts, up to the first with an image and a label
META = re.compile(r"__[^/]*__(?:$|/)")  # members that webdataset keeps for itself
MAX_LABEL_BYTES = 1 << 20
SCATTERED = "its name comes a second time: the members of a sample must lie side by side"
BEHIND_END = "lies behind the end mark of the tar, where webdataset stops reading"
SORT = "pack the files again in the order of their names (tar --sort=name)"
FIXES = {  # why a set cannot be used, the most telling reason first
    "duplicate_key": SORT,
    "no_label": "add a .cls member beside each image, or set source.label_key",
    "bad_label": "write class numbers or names as labels",
    "dots_in_name": "rename the members: one dot in each, before the extension",
    "no_image": "rename the members, or set source.image_key to the extension that is meant",
    "broken_tar": "fetch it again",
    "unreadable": "check its permissions",
    "duplicate_member": SORT,
}
GAP, SPAN = 1 << 18, 1 << 23  # bytes between images that are read rather than skipped, and of one request
REQUESTS = 4  # at once; each holds up to SPAN
COMPRESSED = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))


class Tars:
    """Consecutive members with one name up to the first dot are a sample, as webdataset has it; so is all else that is
    read."""

    def __init__(
        self,
        root: Root,
        names: Sequence[str],
        images: ImagesSpec,
        *,
        where: str,
        image_key: str | None,
        label_key: str,
        class_names: tuple[str, ...] | None,
        given: str | None = None,
    ) -> None:
        self.root, self.names, self.where, self.given = root, tuple(names), where, given
        self.max_bytes, self.label_key = images.max_bytes, label_key
        self.image_keys = tuple(key.strip(" .").lower() for key in image_key.split(";")) if image_key else ()
        self.class_names = class_names
        self.skipped = Counter[str]()

    def check(self) -> None:
        """Refuse tars of several splits or compressed ones, and a set whose first samples have no image with a label,
        or several.

        Raises DataError or ConfigError.
        """
        if self.given is not None:
            split_folders.check_files(self.root, self.names, self.given, self.where)
        for name in self.names if isinstance(self.root, Path) else self.names[:REQUESTS]:
            self._refuse_compressed(self.root / name)
        reasons: dict[str, Rejected] = {}
        for entry in itertools.islice(self._entries(), CHECKED):
            if isinstance(entry, Ref):
                return
            if entry.reason == "several_images":
                raise ConfigError(
                    "source.image_key", f"sample {entry.key} has {entry.detail}", "set it to the one that is meant"
                )
            reasons.setdefault(entry.reason, entry)
        raise self._nothing(reasons)

    def _refuse_compressed(self, path: Root) -> None:
        try:
            with open_file(path) as file:
                kind = compression(file)
        except OSError as error:
            raise DataError(self.where, f"{path} cannot be read ({error.strerror})", "check its permissions") from None
        if kind:
            raise DataError(
                self.where,
                f"{path} is compressed with {kind}",
                "unpack it to a plain tar: images are read by byte range",
            )

    def _nothing(self, reasons: dict[str, Rejected]) -> DataError:
        """Why none of the first samples can be used, by the reason that explains the others."""
        place = self.root / self.names[0] if len(self.names) == 1 else self.root
        for reason, fix in FIXES.items():
            if reason in reasons:
                key, detail = reasons[reason].key, reasons[reason].detail
                return DataError(self.where, f"{place} holds no image with a label: {key}: {detail}", fix)
        return DataError(self.where, f"{place} holds no image", "expected members such as 0001.jpg and 0001.cls")

    def size(self) -> int | None:
        """Only a scan can tell."""
        return None

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        entries = self._entries()
        while group := list(itertools.islice(entries, GROUP)):
            yield group

    def _entries(self) -> Iterator[Ref | Rejected]:
        self.skipped.clear()
        for name in self.names:
            yield from self._samples(name)

    def _samples(self, name: str) -> Iterator[Ref | Rejected]:
        uri, seen = encode_name(name), set[str]()
        start: int | None = 0
        try:
            with open_file(self.root / name) as file:
                if kind := compression(file):
                    yield Rejected(uri, "compressed_tar", f"compressed with {kind}; unpack it to a plain tar")
                    return
                while start is not None:
                    scan = Scan(file, uri, start=start, lenient=True)
                    for key, members in self._grouped(scan):
                        if start:
                            yield Rejected(f"{uri}#{start}/{encode_name(key)}", "behind_end", BEHIND_END)
                        else:
                            yield self._sample(uri, key, members, file, seen)
                    if not scan.stop:
                        self.skipped["tar without a member"] += 1
                    start = scan.next_archive()
        except DataError as error:
            yield Rejected(uri, "broken_tar", f"{error.what}; what lies behind cannot be read")
        except OSError as error:
            yield Rejected(uri, "unreadable", error.strerror or str(error))

    def _grouped(self, scan: Scan) -> Iterator[tuple[str, list[tuple[str, Member]]]]:
        """(key, members by extension) of each sample; names that webdataset passes over are passed over."""
        current, members = "", list[tuple[str, Member]]()
        links = list[tuple[str, str, Member]]()  # of the current sample and the next: they do not part the files of one
        for member in scan:
            key, extension = split_member(member.name)
            if (
                member.kind == "folder"
                or hidden(member.name.rpartition("/")[2])
                or META.match(member.name)
                or not extension
            ):
                continue
            if member.kind != "file":
                self.skipped[f"{member.kind} in a tar"] += 1
                links.append((key, extension, member))
                continue
            if key != current:
                if members:
                    yield current, members + [link[1:] for link in links if link[0] == current]
                links = [link for link in links if link[0] == key]
                current, members = key, []
            members.append((extension, member))
        if members:
            yield current, members + [link[1:] for link in links if link[0] == current]

    def _sample(
        self, uri: str, name: str, members: list[tuple[str, Member]], file: BinaryIO, seen: set[str]
    ) -> Ref | Rejected:
        key = f"{uri}/{encode_name(name)}"
        if name in seen:
            return Rejected(f"{key}#{len(seen)}", "duplicate_key", SCATTERED)
        seen.add(name)
        files = {extension: member for extension, member in members if member.kind == "file"}
        if len(files) < sum(member.kind == "file" for _, member in members):
            return Rejected(key, "duplicate_member", "two members have one name; webdataset stops at them")
        image = self._image(files)
        if isinstance(image, BadImage):
            return Rejected(key, image.reason, image.detail)
        label = self._label(files, file)
        if isinstance(label, BadImage):
            links = [f"; {key}.{e} is a {m.kind}" for e, m in members if e in ("cls", "json") and m.kind != "file"]
            return Rejected(key, label.reason, label.detail + "".join(links))
        if image.size == 0:
            return Rejected(key, "empty_file", "no bytes", label)
        if image.size > self.max_bytes:
            return Rejected(
                key, "too_large_file", f"{image.size:,} bytes, images.max_bytes is {self.max_bytes:,}", label
            )
        return Ref(key, label, Place(uri, offset=image.offset, size=image.size))

    def _image(self, files: dict[str, Member]) -> Member | BadImage:
        """The member that `image_keys` name first; without them the only one with the extension of an image."""
        names = ", ".join(sorted(map(encode_name, files)))[:100]
        found = [extension for extension in self.image_keys or IMAGE_EXTENSIONS if extension in files]
        if len(found) > 1 and not self.image_keys:
            return BadImage("several_images", f"the images {', '.join(found)}")
        if found:
            return files[found[0]]
        dotted = next((e for e in files if e.rpartition(".")[1] and e.rpartition(".")[2] in IMAGE_EXTENSIONS), None)
        if dotted is None or self.image_keys:
            return BadImage("no_image", f"members: {names}")
        if "cls" in files or "json" in files:
            return BadImage("no_image", f"no plain extension of an image; members: {names}")
        return BadImage("dots_in_name", f"names are split at their first dot, as webdataset does; members: {names}")

    def _label(self, files: dict[str, Member], file: BinaryIO) -> int | str | BadImage:
        source = files.get("cls") or files.get("json")
        if source is None:
            return BadImage("no_label", "neither .cls nor .json beside the image")
        if source.size > MAX_LABEL_BYTES:
            return BadImage("bad_label", f"label member of {source.size:,} bytes")
        file.seek(source.offset)
        try:
            text = file.read(source.size).decode("utf-8-sig")
            if "cls" in files:
                return parse_label(_number(text.strip()))
            fields = json.loads(text)
            if not isinstance(fields, dict) or self.label_key not in fields:
                return BadImage("no_label", f"the .json has no key {self.label_key!r}")
            return parse_label(fields[self.label_key])
        except (ValueError, RecursionError) as error:
            return BadImage("bad_label", str(error)[:100])

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes | BadImage]]:
        def read_tar(uri: str, positions: list[int]) -> Iterator[tuple[int, bytes | BadImage]]:
            path, ordered = self.root / decode_name(uri), sorted(positions, key=lambda p: places[p].offset)
            if isinstance(path, RemotePath):
                yield from _remote_ranges(path, ordered, places)
                return
            with open_file(path) as file:
                for position in ordered:
                    yield position, _range(file, places[position])

        return read_by_file(places, read_tar)


def _range(file: BinaryIO, place: Place) -> bytes | BadImage:
    file.seek(place.offset)
    return _whole(file.read(place.size), place.size)


def compression(file: BinaryIO) -> str | None:
    """What a file is compressed with, by its first bytes; the file is at its begin again."""
    head = file.read(6)
    file.seek(0)
    return next((name for signature, name in COMPRESSED if head.startswith(signature)), None)


def _remote_ranges(
    path: RemotePath, ordered: Sequence[int], places: Sequence[Place]
) -> Iterator[tuple[int, bytes | BadImage]]:
    """Images of a remote tar by byte range; those that lie close together are one request, several requests run at
    once."""
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
    main = split_folders.without(find_files(source.path, ".tar", where[0]), test, where[0])
    tars = partial(
        Tars, images=images, image_key=source.image_key, label_key=source.label_key, class_names=source.class_names
    )
    sets = {"": tars(*main, where=where[0], given=source.path)}
    if test is not None:
        sets["test"] = tars(*test, where=where[1], given=source.test_path)
    return sets
