"""Safetensors files before they are trusted: structure, finite numbers, sha256; no GPU, no pickle, each file read once
a process."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from engine import regular
from engine.errors import ConfigError
from engine.storage import origin

PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
POINTER = "is a pointer of Git LFS, not the file itself"
FETCH = "run `git lfs install` and `git lfs pull` in its repository, or fetch it with `hf download`"
_LFS = b"version https://git-lfs.github.com/spec/v1"
_FLOATS = ("F16", "BF16", "F32", "F64")
_INTEGERS = ("I64", "I32", "I16", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class Tensor:
    """One entry of a safetensors header."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file declares; ConfigError where the file is missing, cut, corrupt or of an odd
    dtype."""
    return dict(_header(_version(path)))


def read_headers(paths: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of a model's files together."""
    return {name: tensor for path in paths for name, tensor in read_header(path).items()}


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves of a large one that was not fetched."""
    return path.stat().st_size < 1024 and regular.read(path, 1024).startswith(_LFS)


def check_finite(path: Path) -> None:
    """Refuse a file with a NaN or an infinite number in any tensor (ConfigError naming tensor and file).

    Memory-mapped, tensor by tensor, on the CPU.
    """
    _check_finite(_version(path))


def sha256(path: Path) -> str:
    """The hex digest of a file, streamed; kept for the process for as long as the file's version stays."""
    return origin.sha256(path)


@dataclass(frozen=True)
class _Version:
    path: Path
    size: int
    mtime_ns: int
    inode: int


def _version(path: Path) -> _Version:
    try:
        found = regular.check(path)
    except OSError as error:
        raise ConfigError(str(path), f"cannot be read ({error.strerror})") from error
    return _Version(path, found.st_size, found.st_mtime_ns, found.st_ino)


def _corrupt(path: Path, what: str) -> ConfigError:
    return ConfigError(str(path), what, "copy or download the file again")


@cache
def _header(version: _Version) -> tuple[tuple[str, Tensor], ...]:
    from safetensors import SafetensorError, safe_open

    if version.size == 0:
        raise _corrupt(version.path, "is empty (0 bytes)")
    if is_pointer(version.path):
        raise ConfigError(str(version.path), POINTER, FETCH)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(version.path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                tensors[name] = Tensor(tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError, ValueError) as error:
        raise _corrupt(version.path, f"is not a whole safetensors file ({error})") from error
    if not tensors:
        raise _corrupt(version.path, "holds no tensors")
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS + _INTEGERS:
            what = f"tensor {name} has the unsupported type {tensor.dtype}"
            raise ConfigError(str(version.path), what, "use weights in float32, bfloat16 or float16")
    return tuple(tensors.items())


@cache
def _check_finite(version: _Version) -> None:
    from safetensors import safe_open

    with safe_open(version.path, framework="pt", device="cpu") as file:
        for name, tensor in _header(version):
            if tensor.dtype in _FLOATS and not _is_finite(file.get_tensor(name)):
                what = f"tensor {name} has NaN or infinite numbers"
                raise ConfigError(
                    str(version.path), what, "the file is broken or its training diverged: use another one"
                )


def _is_finite(tensor: Any) -> bool:
    """Whether every number is finite; the sum, which NaN and infinity survive, spares the mask for large sound
    tensors."""
    import torch

    total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite()) or bool(tensor.isfinite().all())
