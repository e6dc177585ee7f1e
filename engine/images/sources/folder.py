"""An image folder: one sub-folder a class, or a metadata file, walked as a stream."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine import regular
from engine.errors import DataError
from engine.images.decode import BadImage
from engine.images.sources.labelled import LAYOUT, FolderLabels, LabelledFolder, inside
from engine.images.sources.remotefolder import RemoteFolder
from engine.images.sources.source import (
    Place,
    Ref,
    Rejected,
    decode_name,
    encode_name,
    hidden,
    sidecar,
)
from engine.images.sources.split_folders import looks_like_image
from engine.spec.recipe import FolderSource, ImagesSpec
from engine.storage.claim import is_output
from engine.storage.paths import RemotePath, place_of

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class Folder(LabelledFolder):
    """Links are followed only inside `inside`."""

    root: Path

    def __init__(
        self,
        root: Path,
        images: ImagesSpec,
        *,
        where: str,
        inside: Path | None = None,
        labels: FolderLabels | None = None,
    ) -> None:
        self.root, self.where = root.absolute(), where
        self._prefix = len(os.path.join(self.root, ""))  # noqa: PTH118 (with its slash, also for the root of the disk)
        self.max_bytes = images.max_bytes
        self.inside = (inside or root).resolve()
        if not self.root.is_dir():
            what = "is not a folder" if self.root.exists() else "does not exist"
            raise DataError(self.where, f"{self.root} {what}", f"give a folder: {LAYOUT}")
        self._settle(labels or FolderLabels())

    def _children(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Links to folders count as folders in the root, as they may be classes, and nowhere else.

        Pipes, devices and outputs of mimeo are nothing.
        """
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if hidden(entry.name) or (is_folder := _is_folder(entry, follow=not folder)) is None:
                        continue
                    if folder or not is_folder or not _holds_outputs(Path(entry.path)):
                        yield entry.name, is_folder
        except OSError as error:
            raise DataError(
                self.where, f"{self.root / folder} cannot be listed ({error.strerror})", "check its permissions"
            ) from None

    def check(self) -> None:
        """Refuse names that cannot be classes, splits, one class only, and classes without a single file."""
        self._check_layout()
        for name in self._folders:
            folder = self.root / name
            if folder.is_symlink() and not folder.resolve().is_relative_to(self.inside):
                raise DataError(
                    self.where, f"class folder {name} is a link that leaves {self.root}", "copy or mount it there"
                )
            first = next(self._walk(folder), None)
            if first is None or all(sidecar(entry.name) for entry in self._walk(folder)):
                what = "is empty" if first is None else "holds no image"
                raise DataError(self.where, f"class folder {name} {what}", "add images to it or remove it")

    def _walk(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        """All entries below a class folder that are not plain folders, as the disk gives them: nothing is held or
        sorted."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if hidden(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False) and not looks_like_image(entry.name):
                        yield from self._walk(Path(entry.path))
                    else:
                        yield entry
        except OSError as error:
            raise DataError(
                self.where, f"{folder} cannot be listed ({error.strerror})", "check its permissions"
            ) from None

    def _below(self, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        yield from ((entry.path[self._prefix :], entry) for entry in self._walk(self.root / folder))

    def _candidate(self, name: str, entry: os.DirEntry[str], label: int | str | None) -> Ref | Rejected:
        key = encode_name(name)
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
        assert label is not None
        return Ref(key, label, Place(key, size=facts.st_size))

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes | BadImage]]:
        for position, place in enumerate(places):
            yield position, read_regular(self.root / decode_name(place.uri), self.max_bytes)


def read_regular(path: Path, max_bytes: int) -> bytes | BadImage:
    """The bytes of a regular file; never waits for a pipe that took its place since the scan, never reads more than
    asked."""
    try:
        with regular.opened(path) as file:
            data = file.read(max_bytes + 1)
    except regular.NotRegularError:
        return BadImage("not_a_file", "no regular file")
    except OSError as error:
        return BadImage("unreadable", error.strerror or type(error).__name__)
    return data if len(data) <= max_bytes else BadImage("too_large_file", f"more than {max_bytes:,} bytes")


def _holds_outputs(folder: Path) -> bool:
    """Whether a folder is an output of mimeo, or holds outputs and nothing else, as `runs` does."""
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


def _is_folder(entry: os.DirEntry[str], *, follow: bool) -> bool | None:
    """Whether an entry is a folder or a regular file (False); None for all others and for links to nothing or in a
    circle."""
    try:
        if entry.is_dir(follow_symlinks=follow):
            return True
        return False if entry.is_file() else None
    except OSError:
        return None


def open_sets(source: FolderSource, images: ImagesSpec, *, download: bool) -> dict[str, Folder | RemoteFolder]:
    """The folder, and the test folder where one is given; both must exist."""
    place = place_of(source.path)
    test = place_of(source.test_path) if source.test_path is not None else None
    labels = FolderLabels(source.class_names, source.label_column, leave_out=inside(place, test, "source.test_path"))
    main = _opened(place, images, "source.path", labels)
    if test is None:
        return {"": main}
    own = FolderLabels(source.class_names, source.label_column, known=main.class_names, is_test=True)
    return {"": main, "test": _opened(test, images, "source.test_path", own)}


def _opened(place: Path | RemotePath, images: ImagesSpec, where: str, labels: FolderLabels) -> Folder | RemoteFolder:
    kind = Folder if isinstance(place, Path) else RemoteFolder
    return kind(place, images, where=where, labels=labels)  # type: ignore[arg-type]
