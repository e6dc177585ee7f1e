"""An image folder: one sub-folder a class, walked as a stream."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.errors import DataError
from engine.images.decode import BadImage
from engine.images.labels import check_names
from engine.images.sources.base import (
    GROUP,
    IMAGE_EXTENSIONS,
    Place,
    Ref,
    Rejected,
    decode_name,
    encode_name,
    hidden,
    open_regular,
    sidecar,
)
from engine.images.sources.remotefolder import SPLIT_NAMES, RemoteFolder, check_classes, refuse_splits
from engine.spec.models import FolderSource, ImagesSpec
from engine.storage.paths import place_of
from engine.storage.run import is_output

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class Folder:
    """Every regular file below a class folder is a candidate, whatever its name; links are followed only inside `inside`."""

    class_names: tuple[str, ...] | None

    def __init__(
        self,
        root: Path,
        images: ImagesSpec,
        *,
        where: str,
        inside: Path | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.root, self.where = root.absolute(), where
        self._prefix = len(os.path.join(self.root, ""))  # noqa: PTH118 (with its slash, also for the root of the disk)
        self.max_bytes = images.max_bytes
        self.skipped = Counter[str]()
        self.inside = (inside or root).resolve()
        self._folders = self._class_folders()
        self.class_names = tuple(class_names if class_names is not None else self._folders)

    def _class_folders(self) -> tuple[str, ...]:
        try:
            if not self.root.is_dir():
                what = "is not a folder" if self.root.exists() else "does not exist"
                raise DataError(
                    self.where, f"{self.root} {what}", "give a folder with one sub-folder of images a class"
                )
            entries = sorted(
                (e for e in os.scandir(self.root) if not hidden(e.name)), key=lambda e: os.fsencode(e.name)
            )
        except OSError as error:
            raise DataError(
                self.where, f"{self.root} cannot be listed ({error.strerror})", "check its permissions"
            ) from None
        folders = tuple(e.name for e in entries if e.is_dir() and not _holds_outputs(Path(e.path)))
        if not folders:
            what = "has files but no class folders" if entries else "is empty"
            raise DataError(self.where, f"{self.root} {what}", "make one sub-folder of images a class")
        return folders

    def check(self) -> None:
        """Refuse names that cannot be classes, split folders, one class only, and classes without a single file."""
        if {name.lower() for name in self._folders} <= SPLIT_NAMES and self._is_nested():
            refuse_splits(self.root, self._folders, self.where)
        check_names(self._folders, self.where)
        for name in self._folders:
            folder = self.root / name
            if folder.is_symlink() and not folder.resolve().is_relative_to(self.inside):
                raise DataError(
                    self.where, f"class folder {name} is a link that leaves {self.root}", "copy or mount it there"
                )
            if next(self._files(folder), None) is None:
                what = "is empty" if next(self._walk(folder), None) is None else "holds no image"
                raise DataError(self.where, f"class folder {name} {what}", "add images to it or remove it")
        check_classes(self.root, self._folders, self.class_names, self.where)

    def _is_nested(self) -> bool:
        return any(entry.is_dir() for name in self._folders for entry in os.scandir(self.root / name))

    def _walk(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        """All entries below a class folder that are not plain folders, as the disk gives them: nothing is held or sorted."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if hidden(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False) and not _looks_like_image(entry.name):
                        yield from self._walk(Path(entry.path))
                    else:
                        yield entry
        except OSError as error:
            raise DataError(
                self.where, f"{folder} cannot be listed ({error.strerror})", "check its permissions"
            ) from None

    def _files(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        """What of `_walk` may be an image by its name; the rest is counted."""
        for entry in self._walk(folder):
            if kind := sidecar(entry.name):
                self.skipped[kind] += 1
            else:
                yield entry

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        group: list[Ref | Rejected] = []
        self.skipped.clear()
        for name in self._folders:
            for entry in self._files(self.root / name):
                group.append(self._candidate(entry, name))
                if len(group) == GROUP:
                    yield group
                    group = []
        if group:
            yield group

    def _candidate(self, entry: os.DirEntry[str], label: str) -> Ref | Rejected:
        key = encode_name(entry.path[self._prefix :])
        try:
            if entry.is_symlink():
                target = Path(entry.path).resolve(strict=True)
                if not target.is_relative_to(self.inside):
                    return Rejected(key, "link_outside", "a link that leaves the data set", label)
            facts = entry.stat()
        except (OSError, RuntimeError) as error:
            if entry.is_symlink():
                return Rejected(key, "broken_link", "a link to nothing, or in a circle", label)
            return Rejected(key, "unreadable", getattr(error, "strerror", None) or type(error).__name__, label)
        if not stat.S_ISREG(facts.st_mode):
            kind = next((text for test, text in KINDS if test(facts.st_mode)), "no regular file")
            return Rejected(key, "not_a_file", kind, label)
        if facts.st_size == 0:
            return Rejected(key, "empty_file", "no bytes", label)
        if facts.st_size > self.max_bytes:
            detail = f"{facts.st_size:,} bytes, images.max_bytes is {self.max_bytes:,}"
            return Rejected(key, "too_large_file", detail, label)
        return Ref(key, label, Place(key, size=facts.st_size))

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes | BadImage]]:
        for position, place in enumerate(places):
            yield position, read_regular(self.root / decode_name(place.uri), self.max_bytes)


def read_regular(path: Path, max_bytes: int) -> bytes | BadImage:
    """The bytes of a regular file; never waits for a pipe that took its place since the scan, never reads more than asked."""
    try:
        with open_regular(path) as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        return BadImage("unreadable", error.strerror or type(error).__name__)
    return data if len(data) <= max_bytes else BadImage("too_large_file", f"more than {max_bytes:,} bytes")


def _looks_like_image(name: str) -> bool:
    return name.lower().rpartition(".")[2] in IMAGE_EXTENSIONS and "." in name


def _holds_outputs(folder: Path) -> bool:
    """Whether a folder is an output of mimeo, or holds one or more and no file, as `runs` does."""
    if is_output(folder):
        return True
    found = False
    with os.scandir(folder) as entries:
        for entry in entries:
            if not hidden(entry.name):
                if not entry.is_dir(follow_symlinks=False) or not is_output(Path(entry.path)):
                    return False
                found = True
    return found


def open_sets(source: FolderSource, images: ImagesSpec, *, download: bool) -> dict[str, Folder | RemoteFolder]:
    """The folder, and the test folder where one is given; both must exist."""
    main = _opened(source.path, images, where="source.path")
    sets = {"": main}
    if source.test_path is not None:
        sets["test"] = _opened(source.test_path, images, where="source.test_path", class_names=main.class_names)
    return sets


def _opened(
    path: str, images: ImagesSpec, *, where: str, class_names: Sequence[str] | None = None
) -> Folder | RemoteFolder:
    place = place_of(path)
    if isinstance(place, Path):
        return Folder(place, images, where=where, class_names=class_names)
    return RemoteFolder(place, images, where=where, class_names=class_names)
