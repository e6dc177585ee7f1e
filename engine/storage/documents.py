"""JSON files of an output, read back through the type that their writer states: anything else is one line, never a
traceback."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import pydantic_core
from pydantic import TypeAdapter, ValidationError

from engine.errors import DataError
from engine.storage.store import Store

MAX_BYTES = 256 * 2**20
FIX = "restore it, or remove it and run the same command again"
T = TypeVar("T")


def read(store: Store, name: str, kind: type[T], fix: str = FIX) -> T:
    """A file of the store as `kind`: a TypedDict, a dataclass, or a container of them; further keys are left out.

    Raises FileNotFoundError where the file is absent, DataError where it is not JSON of that shape.
    """
    return parse(store.read(name), kind, f"{store.url}/{name}", fix)


def find(store: Store, name: str, kind: type[T], fix: str = FIX) -> T | None:
    """As `read`; None where the file is absent."""
    try:
        return read(store, name, kind, fix)
    except FileNotFoundError:
        return None


def parse(text: bytes, kind: type[T], where: str, fix: str = FIX) -> T:
    """JSON text as `kind`, strictly (no number for a text, no NaN, at most 200 levels deep); DataError about
    `where`."""
    if len(text) > MAX_BYTES:
        raise DataError(where, f"has {len(text):,} bytes, more than the {MAX_BYTES:,} that are read", fix)
    try:
        pydantic_core.from_json(text, allow_inf_nan=False)
        value: T = _adapter(kind).validate_json(text, strict=True)  # type: ignore[arg-type]  # a type is hashable
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:80] for part in first["loc"])
        raise DataError(where, f"is not what its writer wrote ({place}: {first['msg']})", fix) from None
    except ValueError as error:
        raise DataError(where, f"is not JSON ({error})", fix) from None
    return value


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
