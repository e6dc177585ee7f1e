"""What the system, Ray and memory raise where nobody expects it, as the error of one line that it is."""

from __future__ import annotations

import sys

from engine.errors import ClusterError, MimeoError
from engine.storage.abstract_store import is_known, storage_error


def as_expected(error: BaseException, place: str = "a file") -> MimeoError | None:
    """The expected failure that an exception stands for: one that a Ray worker raised, a system call that failed on a
    file, memory that ran out, workers that died; None for a fault of the program. `place` is that of a call that names
    no file."""
    cause = _cause(error)
    if isinstance(cause, MimeoError):
        return cause
    if isinstance(cause, OSError) and is_known(cause):
        return storage_error(cause, str(cause.filename or place))
    if isinstance(cause, MemoryError):
        what = f"this needs more memory than there is ({str(cause)[:200]})" if str(cause) else "there is not enough"
        return ClusterError("memory", what, "use a machine with more, or a smaller batch or source")
    ray = sys.modules.get("ray")  # not imported: nothing of it can have failed
    if ray is not None and isinstance(cause, ray.exceptions.RayError) and not hasattr(cause, "cause"):
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        return ClusterError("Ray", first, "what is published is kept: the same command goes on from here")
    return None


def _cause(error: BaseException) -> BaseException:
    """What was raised in a Ray worker, for the error that Ray raises here in its place."""
    for _ in range(10):
        inner = getattr(error, "cause", None)
        if not (isinstance(inner, BaseException) and hasattr(error, "as_instanceof_cause")):
            break
        error = inner
    return error
