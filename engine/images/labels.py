"""Class numbers from whatever a source calls its classes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.images.decode import BadImage

MAX_NAME_BYTES = 200
MAX_CLASSES = 100_000


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


class Labels:
    """Codes labels as they stream in, and says at the end which class number each code is.

    With declared names a number is a position in them and a text is one of them. Without, every distinct label is a class, and
    classes are numbered in the order of their numbers, or of their names.
    """

    def __init__(self, declared: Sequence[str] | None, where: str = "source") -> None:
        self.where = where
        self.declared = tuple(declared) if declared is not None else None
        self._codes: dict[int | str, int] = {name: i for i, name in enumerate(self.declared or ())}
        if self.declared is not None:
            check_names(self.declared, where)
        self._open = self.declared is None

    def code(self, label: int | str) -> int | None:
        """The code of a label; None for one that is no class of this set. Raises DataError on absurdly many classes."""
        if self.declared is not None and isinstance(label, int):
            return label if label < len(self.declared) else None
        code = self._codes.get(label)
        if code is None and self._open:
            code = self._codes[label] = len(self._codes)
            if code >= MAX_CLASSES:
                raise DataError(
                    self.where,
                    f"more than {MAX_CLASSES:,} different labels",
                    "check which column or key holds the label",
                )
        return code

    def close(self) -> None:
        """From now on labels that were not seen are no classes: what follows is a test set."""
        self._open = False

    def classes(self) -> tuple[tuple[str, ...], NDArray[np.int32]]:
        """Class names, and the class number of each code."""
        if self.declared is not None:
            return self.declared, np.arange(len(self.declared), dtype=np.int32)
        numeric = all(isinstance(label, int) or label.isdecimal() for label in self._codes)
        ordered = sorted(self._codes, key=lambda label: (int(label), str(label)) if numeric else (0, str(label)))
        names = tuple(str(label) for label in ordered)
        check_names(names, self.where)
        numbers = np.empty(len(ordered), np.int32)
        numbers[[self._codes[label] for label in ordered]] = np.arange(len(ordered), dtype=np.int32)
        return names, numbers
