"""A data set of the Hugging Face Hub: found in the local cache, fetched once when it is not there, read as files ever
after."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from engine.errors import ConfigError, DataError
from engine.images.sources.folder import Folder
from engine.images.sources.labelled import FolderLabels
from engine.images.sources.metadata import LABEL
from engine.images.sources.metadata import NAMES as METADATA
from engine.images.sources.parquet import ParquetFiles
from engine.images.sources.source import ImageSource
from engine.images.sources.webdataset import Tars
from engine.spec.recipe import HubSource, ImagesSpec

SPLITS = ("train", "validation", "valid", "val", "dev", "test")
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp")
REACH_S = 8.0
PART = re.compile(r"-(\d{5,})-of-(\d{5,})(?=[.-])")


class NotCached(ConfigError):
    """The data set is not on this machine; whether it can be fetched is another question."""

    def __init__(self, source: HubSource) -> None:
        fix = f"mimeo run fetches it, or: hf download --repo-type dataset {source.dataset}"
        super().__init__("source.dataset", f"{source.dataset} is not in the local cache", fix)
        self._source = source

    def check_reachable(self) -> None:
        """Ask the Hub for the data set, within ten seconds; raises ConfigError that says what is wrong."""
        _listing(self._source)


def open_sets(source: HubSource, images: ImagesSpec, *, download: bool) -> dict[str, ImageSource]:
    """The split, and the test split where one is named; raises ConfigError when it is neither cached nor reachable."""
    splits = [source.split] + ([source.test_split] if source.test_split else [])
    try:
        root, files = _cached(source, splits)
    except NotCached:
        if not download:
            raise
        root, files = _fetch(source, splits)
    sets: dict[str, ImageSource] = {}
    for name, split in zip(("", "test"), splits, strict=False):
        sets[name] = _open(root, files[split], source, images, split, sets.get(""))
    return sets


def _hub_error(source: HubSource, error: BaseException) -> ConfigError:
    from huggingface_hub import errors

    at = f" at revision {source.revision}" if source.revision else ""
    known: tuple[tuple[type[BaseException], str, str], ...] = (
        (errors.GatedRepoError, "is gated", "ask for access on its page, then run hf auth login"),
        (errors.RevisionNotFoundError, f"has no revision {source.revision}", "give a commit hash, a tag or a branch"),
        (
            errors.RepositoryNotFoundError,
            "does not exist on the Hub, or is private",
            "check the id, or run hf auth login",
        ),
        (errors.HFValidationError, "is no data set id", "write owner/name"),
        (
            errors.OfflineModeIsEnabled,
            f"is not in the local cache{at} and HF_HUB_OFFLINE is set",
            "fetch it where there is a network, or unset HF_HUB_OFFLINE",
        ),
    )
    for kind, what, fix in known:
        if isinstance(error, kind):
            return ConfigError("source.dataset", f"{source.dataset} {what}", fix)
    what = f"{source.dataset} is not in the local cache{at} and the Hub cannot be reached ({type(error).__name__})"
    return ConfigError("source.dataset", what, "check the network, or copy the cache of another machine (HF_HOME)")


def _cached(source: HubSource, splits: Sequence[str]) -> tuple[Path, dict[str, list[str]]]:
    """The snapshot folder and the files of each split, when all of them lie in the local cache."""
    from huggingface_hub import errors, snapshot_download

    def snapshot(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                source.dataset,
                repo_type="dataset",
                revision=source.revision,
                local_files_only=True,
                allow_patterns=patterns,
            )
        )

    try:
        root = snapshot(["no file at all"])
        names = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
        files = {split: choose(names, split, source) for split in splits}
        suffixes = {PurePosixPath(name).suffix for chosen in files.values() for name in chosen}
        snapshot([f"*{split}*{suffix}" for split in splits for suffix in suffixes])
    except errors.HFValidationError as error:
        raise _hub_error(source, error) from None
    except (FileNotFoundError, DataError):
        raise NotCached(source) from None
    return root, files


def _listing(source: HubSource) -> Any:
    """The Hub's description of the data set; bounded in time even where the name service or a firewall swallows
    requests."""
    from huggingface_hub import HfApi

    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(HfApi().dataset_info(source.dataset, revision=source.revision, timeout=REACH_S / 2))
        except BaseException as error:  # handed to the caller's thread
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_S)
    result = answer[0] if answer else TimeoutError()
    if isinstance(result, BaseException):
        raise _hub_error(source, result) from None
    return result


def _fetch(source: HubSource, splits: Sequence[str]) -> tuple[Path, dict[str, list[str]]]:
    from huggingface_hub import snapshot_download

    info = _listing(source)
    files = {split: choose([entry.rfilename for entry in info.siblings], split, source) for split in splits}
    wanted = [name for chosen in files.values() for name in chosen]
    try:
        root = snapshot_download(source.dataset, repo_type="dataset", revision=source.revision, allow_patterns=wanted)
    except (OSError, ValueError) as error:
        raise _hub_error(source, error) from None
    return Path(root), files


def _mentions(name: str, word: str) -> bool:
    return re.search(rf"(?:^|[/._-]){re.escape(word)}(?:[/._-]|$)", name) is not None


def choose(names: Iterable[str], split: str, source: HubSource) -> list[str]:
    """The files of a split: Parquet, else tars, else images in class folders; named as the Hub's own loader expects.

    Raises DataError when there are none or when a numbered part is missing, ConfigError when several configurations
    match.
    """
    names = sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
    if source.config is not None:
        names = [name for name in names if _mentions(name, source.config)]
    for suffixes in ((".parquet",), (".tar",), IMAGES):
        kind = [name for name in names if name.lower().endswith(suffixes)]
        chosen = [name for name in kind if _mentions(name, split)]
        if not chosen and split == "train" and not any(_mentions(name, other) for name in kind for other in SPLITS):
            chosen = kind
        if chosen:
            if suffixes == IMAGES:
                return chosen + [name for name in names if PurePosixPath(name).name in METADATA]
            _one_config(chosen, split, source)
            _no_part_missing(chosen, source)
            return chosen
    raise DataError(
        "source.split",
        f"{source.dataset} has no Parquet, tar or image files of split {split!r}",
        f"it has {', '.join(names[:5]) or 'no files'}",
    )


def _one_config(names: Sequence[str], split: str, source: HubSource) -> None:
    folders = sorted({str(PurePosixPath(name).parent) for name in names})
    configs = sorted({"/".join(part for part in folder.split("/") if part != split) or "." for folder in folders})
    if len(configs) > 1:
        raise ConfigError(
            "source.config", f"{source.dataset} has several configurations: {', '.join(configs[:8])}", "name one"
        )


def _no_part_missing(names: Sequence[str], source: HubSource) -> None:
    parts: dict[tuple[str, int], set[int]] = {}
    for name in names:
        found = PART.search(name)
        if found:
            parts.setdefault((name[: found.start()], int(found[2])), set()).add(int(found[1]))
    for (stem, total), there in parts.items():
        if len(there) != total:
            raise DataError(
                "source.dataset",
                f"{source.dataset}: {len(there)} of {total} parts of {stem} are there",
                "fetch it again",
            )


def _open(
    root: Path, names: list[str], source: HubSource, images: ImagesSpec, split: str, main: ImageSource | None
) -> ImageSource:
    where = "source.dataset"
    if names[0].endswith(".parquet"):
        return ParquetFiles(
            root,
            names,
            where=where,
            image_column=source.image_column,
            label_column=source.label_column,
            class_names=None,
            naming=main.naming if isinstance(main, ParquetFiles) else None,
        )
    if names[0].endswith(".tar"):
        image_key = source.image_column if source.image_column != "image" else None
        return Tars(
            root, names, images, where=where, image_key=image_key, label_key=source.label_column, class_names=None
        )
    first = PurePosixPath(names[0]).parts
    below = first[: first.index(split) + 1] if split in first else first[:-2]
    repository = root.parents[1]  # snapshots are links into the blobs of the repository's cache folder
    column = source.label_column if source.label_column != LABEL else None
    labels = FolderLabels(label_column=column, known=main.class_names if main else None, is_test=main is not None)
    return Folder(root.joinpath(*below), images, where=where, inside=repository, labels=labels)
