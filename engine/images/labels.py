"""Class numbers from whatever a source calls its classes."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.images.decode import BadImage

MAX_NAME_BYTES = 200
MAX_CLASSES = 100_000
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def parse_label(value: object) -> int | str | BadImage:
    """A class number (0 and up) or a class name from a value of a table or a JSON file."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value < 2**63:
        return value if value >= 0 else BadImage("no_label", f"label {value} marks an unlabelled image")
    if isinstance(value, str) and 0 < len(value.strip().encode(errors="replace")) <= MAX_NAME_BYTES:
        return value.strip()
    return BadImage(
        "bad_label",
        f"label {str(value)[:60]!r} is neither a class number nor a name of {MAX_NAME_BYTES} bytes or fewer",
    )


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse class names that cannot stand in a prompt or that two people would read as one; raises DataError."""
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip() or not name.isprintable() or len(os.fsencode(name)) > MAX_NAME_BYTES:
            shown = ascii(name)[:80]
            raise DataError(
                where, f"class name {shown} is blank, unprintable or over {MAX_NAME_BYTES} bytes", "rename it"
            )
        folded = unicodedata.normalize("NFC", name).casefold().strip()
        if folded in seen:
            raise DataError(
                where,
                f"classes {seen[folded]!r} and {name!r} differ only in case, spaces or Unicode form",
                "rename or merge them",
            )
        seen[folded] = name


def class_order(name: str) -> tuple[bool, Decimal, str]:
    """Sort key of a class name: numbers first, by value, then names by code point."""
    number = NUMBER.fullmatch(name) is not None
    return not number, Decimal(name) if number else Decimal(0), name


def near_match(name: str, known: Iterable[str]) -> str | None:
    """The name among `known` that is spelt most nearly like `name`, case and separators aside; None where none is
    near."""
    folded = {_folded(other): other for other in known}
    near = difflib.get_close_matches(_folded(name), folded, n=1)
    return folded[near[0]] if near else None


def same_but_spelling(name: str, known: Iterable[str]) -> bool:
    """Whether one of `known` differs from `name` in case, separators or Unicode form only."""
    return _folded(name) in {_folded(other) for other in known}


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold()) or name


class Labels:
    """Codes labels as they stream in, and says at the end which class number each code is.

    With declared names a number is a position in them and a text is one of them. Without, every distinct label is a
    class, and classes are numbered by `class_order`; the number 7 and the text "7" are then one class. `chosen`: the
    names come from the recipe and not from the data.
    """

    def __init__(self, declared: Sequence[str] | None, where: str = "source", *, chosen: bool = False) -> None:
        self.where, self.chosen = where, chosen
        self.declared = tuple(declared) if declared is not None else None
        self._codes: dict[str, int] = {name: i for i, name in enumerate(self.declared or ())}
        if self.declared is not None:
            check_names(self.declared, where)
        self._numeric = all(NUMBER.fullmatch(name) for name in self._codes)

    @property
    def names(self) -> tuple[str, ...]:
        """The declared names, or those seen so far."""
        return tuple(self._codes)

    def code(self, label: int | str, *, learn: bool = True) -> int | None:
        """The code of a label; None for one that is no class of this set, or, without `learn`, has not been seen yet.

        Raises DataError on absurdly many classes, and for a number that may be a position or a name.
        """
        if self.declared is not None:
            return self._position(label) if isinstance(label, int) else self._codes.get(label)
        name = str(label)
        code = self._codes.get(name)
        if code is None and learn:
            code = self._codes[name] = len(self._codes)
            if code >= MAX_CLASSES:
                raise DataError(
                    self.where,
                    f"more than {MAX_CLASSES:,} different labels",
                    "check which column or key holds the label",
                )
        return code

    def _position(self, label: int) -> int | None:
        assert self.declared is not None
        position = label if label < len(self.declared) else None
        if self.chosen and self._numeric and self._codes.get(str(label)) != position:
            raise DataError(
                "source.class_names",
                f"holds numbers only, so that label {label} may be a name or a position",
                "leave source.class_names out (each label is a class then), or give names that are no numbers",
            )
        return position

    def classes(self) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """Class names, and the class number of each code."""
        if self.declared is not None:
            return self.declared, np.arange(len(self.declared), dtype=np.int32)
        names = tuple(sorted(self._codes, key=class_order))
        check_names(names, self.where)
        numbers = np.empty(len(names), np.int32)
        numbers[[self._codes[name] for name in names]] = np.arange(len(names), dtype=np.int32)
        return names, numbers
