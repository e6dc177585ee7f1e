"""What a job sends to a cluster: a folder less what its ignore files name, and less what never travels, whatever they
say."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError

LIMIT_MIB = 64  # code and recipes are a few; Ray itself refuses 512
# keys, tokens and what holds them, as gitignore patterns; .rayignore, .dockerignore and clusters/*.yaml name the same
NEVER = (
    ".env",
    ".env.*",
    "*.env",
    ".envrc",
    ".aws",
    ".azure",
    ".boto",
    ".docker",
    ".git",
    ".git-credentials",
    ".gnupg",
    ".huggingface",
    ".kube",
    ".mimeo",
    ".netrc",
    ".npmrc",
    ".pgpass",
    ".pypirc",
    ".ray",
    ".s3cfg",
    ".ssh",
    ".vault-token",
    "gcloud",
    "*.jks",
    "*.kdbx",
    "*.key",
    "*.p12",
    "*.pem",
    "*.pfx",
    "*.ppk",
    "*.token",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    "id_rsa*",
    "application_default_credentials.json",
    "client_secret*.json",
    "credentials",
    "credentials.csv",
    "credentials.json",
    "kubeconfig",
    "rclone.conf",
    "secrets.json",
    "secrets.toml",
    "secrets.yaml",
    "secrets.yml",
    "service-account*.json",
    "service_account*.json",
)


@dataclass(frozen=True)
class Upload:
    """How many files and bytes of a folder are sent, and the names that are kept back because they may hold secrets."""

    files: int
    bytes: int
    kept: tuple[str, ...]

    @property
    def excludes(self) -> list[str]:
        """The gitignore patterns that keep them back: Ray's `excludes`."""
        return [*NEVER, *(f"/{name}" for name in self.kept)]


def survey(folder: Path) -> Upload:
    """What Ray would send of a folder, less what .gitignore, .rayignore and `NEVER` name; ConfigError above the limit.

    A link counts by its own name and by that of what it leads to.
    """
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    sizes: Counter[str] = Counter()
    kept: list[str] = []
    count = 0
    match, anywhere = _get_excludes(folder, list(NEVER)), _get_excludes(Path("/"), list(NEVER))

    def keep(path: Path) -> bool:
        if path == folder or not (match(path) or _leads_to(path, anywhere)):
            return False
        kept.append(str(path.relative_to(folder)))
        return True

    def add(path: Path) -> None:
        nonlocal count
        if path.is_file():
            parts = path.relative_to(folder).parts
            sizes["/".join(parts[:2]) if len(parts) > 2 else parts[0]] += path.stat().st_size
            count += 1

    quiet = logging.getLogger("mimeo.jobs")
    quiet.setLevel(logging.ERROR)
    _dir_travel(folder, [keep], add, include_gitignore=True, logger=quiet)
    total = sizes.total()
    if total > LIMIT_MIB * 2**20:
        largest = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in sizes.most_common(3))
        what = f"{total / 2**20:.0f} MiB would be sent to the cluster, more than {LIMIT_MIB} (largest: {largest})"
        raise ConfigError(str(folder), what, "name them in .rayignore, or send another --working-dir")
    return Upload(count, total, tuple(sorted(kept)))


def _leads_to(path: Path, match: Callable[[Path], bool]) -> bool:
    """Whether a link ends at something that never travels, or within it."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    return any(match(place) for place in (target, *target.parents))
