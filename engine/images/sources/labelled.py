"""What folders of images have in common on a disk and on a store: which folders are classes, or which file gives the
labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import DataError
from engine.images.decode import BadImage
from engine.images.labels import check_names, class_order, near_match
from engine.images.sources import metadata, split_folders
from engine.images.sources.source import GROUP, Ref, Rejected, Root, encode_name, sidecar
from engine.storage.paths import RemotePath

LAYOUT = "make one sub-folder of images a class, or a metadata.csv with the columns file_name and label"


@dataclass(frozen=True)
class FolderLabels:
    """What the recipe, and of a test set the main set, say about a folder's classes.

    `chosen`: source.class_names; `known`: the main set's classes; `leave_out`: the folder of the test set inside this
    one.
    """

    chosen: tuple[str, ...] | None = None
    label_column: str | None = None
    known: tuple[str, ...] | None = None
    is_test: bool = False
    leave_out: str | None = None


class LabelledFolder(ABC):
    """Every file below a class folder is a candidate, or, where a metadata file gives labels, every image below the
    folder.

    A metadata file counts where `label_column` names its column, or where there are not two class folders; beside class
    folders a column "label" must agree with them.
    """

    root: Root
    where: str
    class_names: tuple[str, ...] | None

    @abstractmethod
    def _children(self, folder: str) -> Iterator[tuple[str, bool]]:
        """(name, whether it is a folder) of what lies in a folder below the root and is not hidden, in any order."""

    @abstractmethod
    def _below(self, folder: str) -> Iterator[tuple[str, Any]]:
        """(path below the root, entry) of everything at any depth below a folder ("" is the root) that is not
        hidden."""

    @abstractmethod
    def _candidate(self, name: str, entry: Any, label: int | str | None) -> Ref | Rejected: ...

    def _settle(self, labels: FolderLabels) -> None:
        """Find out where labels come from; sets `class_names`. Raises DataError or ConfigError."""
        self._labels = labels
        self.skipped = Counter[str]()
        found = list(self._children(""))
        folders = sorted((name for name, folder in found if folder and name != labels.leave_out), key=class_order)
        files = [name for name, folder in found if not folder]
        beside = metadata.find(self.root, files, self.where, labels.label_column)
        usable = beside is not None and beside.column is not None
        self._metadata = beside if usable and (labels.label_column is not None or len(folders) < 2) else None
        self._compared = beside if usable and self._metadata is None else None
        if self._metadata is not None:
            self._folders: tuple[str, ...] = ()
            own = labels.chosen if labels.chosen is not None else self._metadata.class_names
            self.class_names = labels.known if labels.is_test else own
            return
        if not folders or (beside is not None and len(folders) < 2 and not labels.is_test):
            raise DataError(self.where, *self._no_classes(found, beside))
        self._folders = self._chosen(folders) if labels.chosen is not None else tuple(folders)
        self.class_names = labels.known if labels.is_test else (labels.chosen or self._folders)

    def _no_classes(self, found: Sequence[Any], beside: metadata.Metadata | None) -> tuple[str, str]:
        if beside is not None:
            columns = ", ".join(beside.columns)[:200]
            return (
                f"{beside.path} has no column {metadata.LABEL!r}",
                f"set source.label_column to that of the labels: {columns}",
            )
        empty = "does not exist or is empty" if isinstance(self.root, RemotePath) else "is empty"
        return f"{self.root} {'has files but no class folders' if found else empty}", LAYOUT

    def _chosen(self, folders: Sequence[str]) -> tuple[str, ...]:
        """The folders that source.class_names names; of the main set each must be there."""
        assert self._labels.chosen is not None
        absent = [name for name in self._labels.chosen if name not in folders]
        for name in absent:
            near = near_match(name, folders)
            if near is not None or not self._labels.is_test:
                fix = f"did you mean {near!r}?" if near else f"folders: {', '.join(folders[:10])}"
                raise DataError("source.class_names", f"{name!r} is no folder of {self.root}", fix)
        return tuple(name for name in self._labels.chosen if name in folders)

    def _check_layout(self) -> None:
        """Refuse parts taken for classes, names that cannot be classes, one class only, and labels that contradict
        folders."""
        if self._metadata is not None:
            return
        if self._labels.chosen is None:
            split_folders.check_folders(self.root, self._folders, self._children, self._is_labelled, self.where)
        check_names(self._folders, self.where)
        if not self._labels.is_test and len(self._folders) < 2:
            raise DataError(
                self.where, f"{self.root} holds one class only ({self._folders[0]})", "a classifier needs two or more"
            )
        if self._labels.is_test and self._labels.known is not None:
            self._check_known(self._labels.known)
        if self._compared is not None:
            self._compare(self._compared)

    def _is_labelled(self, folder: str) -> bool:
        names = [name for name in metadata.NAMES if self._is_file(f"{folder}/{name}")]
        found = metadata.find(self.root / folder, names[:1], self.where, None)
        return found is not None and found.column is not None

    def _is_file(self, name: str) -> bool:
        return (self.root / name).is_file()

    def _check_known(self, known: Sequence[str]) -> None:
        unknown = [name for name in self._folders if name not in known]
        if unknown:
            near = near_match(unknown[0], known)
            what = f"class folder {unknown[0]} is no class of the main set ({len(known)} classes)"
            raise DataError(self.where, what, f"did you mean {near!r}?" if near else "rename or remove it")

    def _compare(self, beside: metadata.Metadata) -> None:
        for name, label in beside.labels(numbers=False).items():
            folder = name.partition("/")[0]
            if not isinstance(label, BadImage) and str(label) != folder:
                raise DataError(
                    self.where,
                    f"{beside.path} gives {name} the label {str(label)[:60]!r}, and there are class folders",
                    f"set source.label_column to {beside.column} to take the labels from it, or take it "
                    "out to use folders",
                )

    def size(self) -> int | None:
        """Only a scan can tell."""
        return None

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        """References in groups, as the folders give them."""
        group: list[Ref | Rejected] = []
        for entry in self._listed():
            group.append(entry)
            if len(group) == GROUP:
                yield group
                group = []
        if group:
            yield group

    def _listed(self) -> Iterator[Ref | Rejected]:
        self.skipped.clear()
        if self._metadata is None:
            for label in self._folders:
                for name, entry in self._below(label):
                    if kind := sidecar(name):
                        self.skipped[kind] += 1
                    else:
                        yield self._candidate(name, entry, label)
            return
        chosen = self._labels.chosen is not None
        labels = self._metadata.labels(numbers=chosen and not any(map(str.isdecimal, self._labels.chosen or ())))
        for name, entry in self._below(""):
            own = labels.pop(name, None)
            if name.partition("/")[0] == self._labels.leave_out:
                continue
            if isinstance(own, BadImage):
                yield Rejected(encode_name(name), own.reason, own.detail)
            elif own is not None:
                yield self._candidate(name, entry, own)
            elif split_folders.looks_like_image(name):
                yield Rejected(encode_name(name), "no_label", f"{self._metadata.name} does not name it")
        for name, absent in labels.items():
            known = None if isinstance(absent, BadImage) else absent
            yield Rejected(
                encode_name(name), "unreadable", f"{self._metadata.name} names it, and it is not there", known
            )


def inside(main: Root, test: Root | None, where: str) -> str | None:
    """The folder of the test set where it lies directly in the main one; DataError where it lies elsewhere inside
    it."""
    if test is None:
        return None
    if isinstance(main, Path) and isinstance(test, Path):
        own, other = main.resolve(), test.resolve()
        below = other.relative_to(own).as_posix() if other.is_relative_to(own) else None
    else:
        own_url, other_url = f"{main}/", f"{test}/"
        below = other_url.removeprefix(own_url).strip("/") if other_url.startswith(own_url) else None
    if below is None:
        return None
    if below in ("", ".") or "/" in below:
        raise DataError(
            where, f"{test} is source.path or lies inside one of its classes", "give the sets folders apart"
        )
    return below
