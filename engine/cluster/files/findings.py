"""What a check of a cluster file found, and the small helpers with which rules look at data of any shape."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engine.errors import ConfigError


@dataclass
class Findings:
    """Problems, which keep a file from being used, and advice, which does not; each is one line: where, what, fix."""

    path: str
    problems: list[ConfigError] = field(default_factory=list)
    advice: list[ConfigError] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def problem(self, key: str, what: str, fix: str = "") -> None:
        """Note a problem at a dotted key; the first one at a key with the same words stands for all."""
        error = ConfigError(f"{self.path}: {key}" if key else self.path, what, fix)
        if str(error) not in {str(known) for known in self.problems}:
            self.problems.append(error)

    def advise(self, key: str, what: str, fix: str = "") -> None:
        """Note advice at a dotted key."""
        self.advice.append(ConfigError(f"{self.path}: {key}" if key else self.path, what, fix))

    def has(self, key: str) -> bool:
        """Whether a problem is known at this very key."""
        return any(error.where == f"{self.path}: {key}" for error in self.problems)


def mapping(value: Any) -> dict[str, Any]:
    """The value with text keys if it is a mapping, else an empty one: its wrong type is another rule's finding."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def listing(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def at(value: Any, *names: str) -> Any:
    """The value below nested mappings, or None."""
    for name in names:
        value = mapping(value).get(name)
    return value


def whole(value: Any) -> int | None:
    """The value if it is a whole number, else None; true and false are none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def join(prefix: str, name: Any) -> str:
    """A dotted key one step further: `a.b`, `a[0]`."""
    if isinstance(name, int):
        return f"{prefix}[{name}]"
    return f"{prefix}.{name}" if prefix else str(name)


def nearest(name: str, known: Iterable[str], few: str = "known are") -> str:
    """What to do about an unknown name: the nearest known one, or all of them when they are few."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"{few} {', '.join(known)}" if len(known) <= 12 else "remove it"


def walk(value: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(dotted key, last name, value) of everything in a document, mappings and lists included."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = ((str(key), item) for key, item in value.items())
    elif isinstance(value, list):
        items = enumerate(value)
    for name, item in items:
        key = join(prefix, name)
        yield key, str(name), item
        yield from walk(item, key)
