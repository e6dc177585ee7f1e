"""An image folder on an object store: one sub-folder a class, each image one request; and the checks that local folders share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from engine.errors import DataError
from engine.images.decode import BadImage
from engine.images.labels import check_names
from engine.images.sources.base import GROUP, Place, Ref, Rejected, decode_name, encode_name, hidden, sidecar
from engine.spec.models import ImagesSpec
from engine.storage.base import Entry
from engine.storage.parallel import mapped
from engine.storage.paths import RemotePath

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
REQUESTS = 8  # images on their way at once


class RemoteFolder:
    """Every file below a class folder is a candidate, whatever its name; a store has neither links nor empty folders."""

    class_names: tuple[str, ...] | None

    def __init__(
        self, root: RemotePath, images: ImagesSpec, *, where: str, class_names: Sequence[str] | None = None
    ) -> None:
        self.root, self.where, self.max_bytes = root, where, images.max_bytes
        self.skipped = Counter[str]()
        self._folders = self._class_folders()
        self.class_names = tuple(class_names if class_names is not None else self._folders)

    def _class_folders(self) -> tuple[str, ...]:
        found = [(name, folder) for name, folder in self.root.children() if not hidden(name)]
        folders = sorted((name for name, folder in found if folder), key=lambda name: name.encode())
        if not folders:
            what = "has files but no class folders" if found else "does not exist or is empty"
            raise DataError(self.where, f"{self.root} {what}", "make one sub-folder of images a class")
        return tuple(folders)

    def check(self) -> None:
        """Refuse names that cannot be classes, split folders and one class only; DataError."""
        if {name.lower() for name in self._folders} <= SPLIT_NAMES and self._is_nested():
            refuse_splits(self.root, self._folders, self.where)
        check_names(self._folders, self.where)
        check_classes(self.root, self._folders, self.class_names, self.where)

    def _is_nested(self) -> bool:
        return any(folder for name in self._folders for _, folder in (self.root / name).children())

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        group: list[Ref | Rejected] = []
        self.skipped.clear()
        for label in self._folders:
            for entry in (self.root / label).files():
                if any(hidden(part) for part in entry.name.split("/")):
                    continue
                if kind := sidecar(entry.name):
                    self.skipped[kind] += 1
                    continue
                group.append(self._candidate(entry, label))
                if len(group) == GROUP:
                    yield group
                    group = []
        if group:
            yield group

    def _candidate(self, entry: Entry, label: str) -> Ref | Rejected:
        key = encode_name(f"{label}/{entry.name}")
        if entry.size == 0:
            return Rejected(key, "empty_file", "no bytes", label)
        if entry.size > self.max_bytes:
            return Rejected(
                key, "too_large_file", f"{entry.size:,} bytes, images.max_bytes is {self.max_bytes:,}", label
            )
        return Ref(key, label, Place(key, size=entry.size))

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes | BadImage]]:
        yield from enumerate(mapped(self._one, places, REQUESTS))

    def _one(self, place: Place) -> bytes | BadImage:
        try:
            data = (self.root / decode_name(place.uri)).read(0, self.max_bytes + 1)
        except FileNotFoundError:
            return BadImage("unreadable", "No such file or directory")
        return (
            data if len(data) <= self.max_bytes else BadImage("too_large_file", f"more than {self.max_bytes:,} bytes")
        )


def refuse_splits(root: Path | RemotePath, folders: Sequence[str], where: str) -> NoReturn:
    """The error for a folder of splits in place of classes."""
    raise DataError(
        where,
        f"{root} holds splits ({', '.join(folders)}), not classes",
        f"set {where} to {root}/{folders[0]}, and source.test_path to the test set",
    )


def check_classes(
    root: Path | RemotePath, folders: tuple[str, ...], class_names: tuple[str, ...] | None, where: str
) -> None:
    """Refuse a single class, and in a test set classes that the main set has not (DataError)."""
    if class_names == folders and len(folders) < 2:
        raise DataError(where, f"{root} holds one class only ({folders[0]})", "a classifier needs two or more")
    unknown = sorted(set(folders) - set(class_names or ()))
    if unknown:
        what = f"class folder {unknown[0]} is no class of the main set ({len(class_names or ())} classes)"
        raise DataError(where, what, "rename or remove it")
