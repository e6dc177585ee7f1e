"""Where a checkpoint lies: a local directory, or a pinned commit of a Hugging Face Hub repository in the local cache."""

from __future__ import annotations

import re
from pathlib import Path

from engine.diffusion.layout import STEMS
from engine.errors import ConfigError

_WHERE = "model.checkpoint"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WANTED = ("model_index.json", "*/*.json", "*/*.txt", "*/*.safetensors")
_UNWANTED = ("safety_checker/*",)
TIMEOUT_S = 5.0


def locate(checkpoint: str | None, revision: str | None) -> Path:
    """The directory of a checkpoint: as given where it exists, else the Hub id's snapshot, downloaded when it is not cached.

    A Hub id needs `revision`, a commit's 40 hex digits. ConfigError in one line where it cannot be had.
    """
    if checkpoint is None:
        raise ConfigError(_WHERE, "is not set", "name a diffusers directory, or run mimeo pretrain first")
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        what = f"{checkpoint} is a file, not a diffusers directory"
        raise ConfigError(
            _WHERE, what, "convert it: StableDiffusionPipeline.from_single_file(...).save_pretrained(NEW)"
        )
    if not _HUB_ID.fullmatch(checkpoint):
        raise ConfigError(
            _WHERE, f"{checkpoint} does not exist", "give a diffusers directory or a Hub id such as owner/name"
        )
    if revision is None or not _COMMIT.fullmatch(revision):
        what = f"{checkpoint} is no directory here, and as a Hub id it needs model.revision, a commit's 40 hex digits"
        raise ConfigError(_WHERE, what, f"see https://huggingface.co/{checkpoint}/commits/main")
    return _snapshot(checkpoint, revision)


def _snapshot(repository: str, revision: str) -> Path:
    """The cached snapshot; half-precision duplicates are fetched only where there is no plain file."""
    folder = _download(repository, revision, ("*.fp16.*", "*.fp16-*", *_UNWANTED))
    parts = [folder / name for name in STEMS if (folder / name).is_dir()]
    if not all(any(part.glob("*.safetensors")) for part in parts):
        folder = _download(repository, revision, _UNWANTED)
    return folder


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
            )
        )
    except Exception as error:  # network libraries' own exceptions, which differ between releases of huggingface_hub
        for kind, what, fix in reasons:
            if isinstance(error, kind):
                raise ConfigError(_WHERE, f"{repository} {what}", fix) from error
        reason = " ".join(str(error).split())[:200]
        what = f"{repository} could not be downloaded ({type(error).__name__}: {reason})"
        raise ConfigError(_WHERE, what, "check the network, and HF_HOME and its free space") from error
