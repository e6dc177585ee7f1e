"""An image folder on an object store: one sub-folder a class, or a metadata file; each image is one request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.images.decode import BadImage
from engine.images.sources.labelled import FolderLabels, LabelledFolder
from engine.images.sources.source import Place, Ref, Rejected, decode_name, encode_name, hidden
from engine.images.sources.split_folders import looks_like_image
from engine.spec.recipe import ImagesSpec
from engine.storage.abstract_store import Entry
from engine.storage.parallel import mapped
from engine.storage.paths import RemotePath

REQUESTS = 8  # images on their way at once


class RemoteFolder(LabelledFolder):
    """A store has neither links nor empty folders."""

    root: RemotePath

    def __init__(self, root: RemotePath, images: ImagesSpec, *, where: str, labels: FolderLabels | None = None) -> None:
        self.root, self.where, self.max_bytes = root, where, images.max_bytes
        self._settle(labels or FolderLabels())

    def check(self) -> None:
        """Refuse parts taken for classes, names that cannot be classes and one class only; DataError."""
        self._check_layout()

    def _children(self, folder: str) -> Iterator[tuple[str, bool]]:
        place = self.root / folder if folder else self.root
        yield from ((name, is_folder) for name, is_folder in place.children() if not hidden(name))

    def _below(self, folder: str) -> Iterator[tuple[str, Entry | None]]:
        """Files; a folder whose name is that of an image comes once, without its content, as from a disk."""
        place, last = (self.root / folder, "") if folder else (self.root, "")
        for entry in place.files():
            parts = entry.name.split("/")
            if any(hidden(part) for part in parts):
                continue
            odd = next((i for i, part in enumerate(parts[:-1]) if looks_like_image(part)), None)
            name = "/".join(([folder] if folder else []) + (parts if odd is None else parts[: odd + 1]))
            if odd is None or name != last:
                yield name, entry if odd is None else None
            last = name

    def _candidate(self, name: str, entry: Entry | None, label: int | str | None) -> Ref | Rejected:
        key = encode_name(name)
        if entry is None:
            return Rejected(key, "not_a_file", "a folder", label)
        if entry.size == 0:
            return Rejected(key, "empty_file", "no bytes", label)
        if entry.size > self.max_bytes:
            return Rejected(
                key, "too_large_file", f"{entry.size:,} bytes, images.max_bytes is {self.max_bytes:,}", label
            )
        assert label is not None
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
