"""Where a checkpoint lies: a local directory, a folder of an object store, or a pinned commit of a Hugging Face Hub
repository."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from engine.diffusion.layout import STEMS, conversion
from engine.errors import ConfigError
from engine.storage import node_cache
from engine.storage.urls import normalise

_WHERE = "model.checkpoint"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WANTED = ("model_index.json", "mimeo.json", "*/*.json", "*/*.txt", "*/*.safetensors")
_UNWANTED = ("safety_checker/*",)
TIMEOUT_S = 5.0
_REDUCED = re.compile(r"\.(fp16|bf16|non_ema)\b.*(safetensors|json)$|index\.(fp16|bf16)\.json$")
_PLAIN = {f"{stem}{end}" for stem in set(STEMS.values()) for end in (".safetensors", ".safetensors.index.json")}
_HERE: dict[tuple[str, str], Path] = {}


def locate(checkpoint: str | None, revision: str | None) -> Path:
    """The directory of a checkpoint: as given where it exists, this node's copy of a URL's folder, or the Hub id's
    snapshot.

    What is not on this node is downloaded. A Hub id needs `revision`, a commit's 40 hex digits. ConfigError in one line
    where it cannot be had.
    """
    if checkpoint is None:
        raise ConfigError(_WHERE, "is not set", "name a diffusers directory, or run mimeo pretrain first")
    if "://" in checkpoint:
        return _stored(checkpoint)
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        what = f"{checkpoint} is a file, not a diffusers directory"
        raise ConfigError(_WHERE, what, conversion(path))
    if not _HUB_ID.fullmatch(checkpoint):
        raise ConfigError(
            _WHERE, f"{checkpoint} does not exist", "give a diffusers directory or a Hub id such as owner/name"
        )
    if revision is None or not _COMMIT.fullmatch(revision):
        what = f"{checkpoint} is no directory here, and as a Hub id it needs model.revision, a commit's 40 hex digits"
        raise ConfigError(_WHERE, what, f"see https://huggingface.co/{checkpoint}/commits/main")
    return _snapshot(checkpoint, revision)


def known(checkpoint: str, revision: str | None) -> Path | None:
    """The directory of a checkpoint that lies on this node as it is named; nothing is downloaded."""
    path = Path(checkpoint).expanduser()
    if "://" in checkpoint or path.is_dir():
        return None if "://" in checkpoint else path.resolve()
    if revision is None or not _HUB_ID.fullmatch(checkpoint):
        return None
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(checkpoint, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None


def place(checkpoint: str | None, folder: Path) -> str:
    """What names a located checkpoint on every node: its URL, or its directory."""
    return normalise(checkpoint) if checkpoint is not None and "://" in checkpoint else str(folder)


def here(place: str, digest: str = "", files: Mapping[str, str] | None = None) -> Path:
    """The directory of a `place` on this node; a URL's is fetched once and compared with the SHA-256 of its `files`.

    `digest` names the content, so that a process asks the store only once. Raises StorageError.
    """
    if "://" not in place:
        return Path(place)
    if (place, digest) not in _HERE or not digest:
        _HERE[place, digest] = node_cache.fetch(place, digests=files, select=_wanted)
    return _HERE[place, digest]


def file_here(place: Path | str, sha256: str = "") -> Path:
    """A file on this node: as given, or a URL's, fetched once and compared with its SHA-256 where that is known."""
    if "://" not in str(place):
        return Path(place).expanduser()
    name = str(place).rpartition("/")[2]
    return node_cache.fetch(str(place), digests={name: sha256} if sha256 else None)


def _stored(url: str) -> Path:
    folder = node_cache.fetch(url, select=_wanted)
    if folder.is_file():
        raise ConfigError(_WHERE, f"{url} is a file, not a diffusers directory", "give the folder of model_index.json")
    if not (folder / "model_index.json").is_file():
        raise ConfigError(_WHERE, f"{url} is not a diffusers directory (no model_index.json)", "check the address")
    if not any(folder.glob("*/*.safetensors")):
        fix = "convert it on a machine where you trust it: save_pretrained(NEW, safe_serialization=True)"
        raise ConfigError(_WHERE, f"{url} has no safetensors weights; pickled ones are never downloaded", fix)
    return folder


def _wanted(names: Sequence[str]) -> list[str]:
    """The files of a diffusers directory that are fetched: those that are used, and code, which is refused."""
    found = [*used(names), *(name for name in names if fnmatchcase(name, "*/*.py"))]
    return [name for name in found if not any(fnmatchcase(name, pattern) for pattern in _UNWANTED)]


def used(names: Sequence[str]) -> list[str]:
    """The files of a diffusers directory that loaders use; half-precision duplicates, pickles and code are left."""
    found = [name for name in names if any(fnmatchcase(name, pattern) for pattern in _WANTED)]
    parts = {name.rpartition("/")[0] for name in found if name.rpartition("/")[2] in _PLAIN}
    return [name for name in found if not (_REDUCED.search(name) and name.rpartition("/")[0] in parts)]


def _snapshot(repository: str, revision: str) -> Path:
    """The cached snapshot; half-precision duplicates are fetched only where there is no plain file."""
    folder = _download(repository, revision, ("*.fp16.*", "*.fp16-*", *_UNWANTED))
    parts = [folder / name for name in STEMS if (folder / name).is_dir()]
    if not all(any(part.glob("*.safetensors")) for part in parts):
        folder = _download(repository, revision, _UNWANTED)
    return folder


def _reachable() -> bool:
    """Whether the Hub's machine answers at all, asked once: its library asks five times, for half a minute."""
    from huggingface_hub import constants

    if getproxies():
        return True  # a proxy resolves names that this machine cannot
    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=TIMEOUT_S):
            return True
    except OSError:
        return False


def _download(repository: str, revision: str, unwanted: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download

    reasons = (
        (errors.GatedRepoError, "asks for its licence to be accepted", "accept it on the Hub, then `hf auth login`"),
        (errors.RepositoryNotFoundError, "is not on the Hub, or is private", "check the name, or `hf auth login`"),
        (errors.RevisionNotFoundError, f"has no commit {revision}", "check model.revision"),
        (
            errors.LocalEntryNotFoundError,
            f"commit {revision[:12]} is not in the local cache, and the Hub cannot be reached",
            f"run `hf download {repository} --revision {revision}` where there is a network, or name a directory",
        ),
    )
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(_WANTED),
                ignore_patterns=list(unwanted),
                etag_timeout=TIMEOUT_S,
                local_files_only=not _reachable(),
            )
        )
    except Exception as error:  # network libraries' own exceptions, which differ between releases of huggingface_hub
        for kind, what, fix in reasons:
            if isinstance(error, kind):
                raise ConfigError(_WHERE, f"{repository} {what}", fix) from error
        reason = " ".join(str(error).split())[:200]
        what = f"{repository} could not be downloaded ({type(error).__name__}: {reason})"
        raise ConfigError(_WHERE, what, "check the network, and HF_HOME and its free space") from error
