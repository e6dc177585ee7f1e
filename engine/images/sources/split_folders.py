"""Splits taken for classes: folders and files whose names or arrangement say that they are parts of one set."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from engine.errors import DataError
from engine.images.sources.source import IMAGE_EXTENSIONS, Root

WORDS = {
    "train": ("train", "training", "trainset", "trn"),
    "test": ("test", "testing", "testset", "tst", "eval", "evaluation", "holdout"),
    "validation": ("validation", "valid", "val", "dev", "devel"),
}
ROLES = {word: role for role, words in WORDS.items() for word in words}
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
ENTRIES = 10_000  # entries of a folder that are looked at
FOLDERS = 16  # folders of a set that are looked into
LABELLED = 4  # of these, in so many a file with labels is looked for
DEEP = 8  # folders in folders
IMAGES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)

Listed = Callable[
    [str], Iterator[tuple[str, bool]]
]  # (name, whether it is a folder) of what lies in a folder of the set


def looks_like_image(name: str) -> bool:
    """Whether a name ends as those of images do."""
    return name.lower().endswith(IMAGES)


def role(name: str) -> str | None:
    """The split that a name speaks of ("train", "validation" or "test"), such as seg_train, trainA or val2017; else
    None."""
    return next((ROLES[word.lower()] for word in WORD.findall(name) if word.lower() in ROLES), None)


@dataclass(frozen=True)
class Part:
    """A top folder: where its classes lie (below further folders that hold nothing else), their names, and its
    labels."""

    name: str
    below: str
    classes: frozenset[str]
    labelled: bool

    @property
    def readable(self) -> bool:
        """Whether it is a set by itself."""
        return len(self.classes) > 1 or self.labelled


def check_folders(
    root: Root, folders: Sequence[str], listed: Listed, labelled: Callable[[str], bool], where: str
) -> None:
    """Refuse top folders that are parts of a set and not classes (DataError, with the settings that read them right).

    They are parts where all are called so; where one that is called training holds classes; where all hold folders of
    the same names; and where each has a file that gives labels. `labelled(folder)` says whether such a file lies in a
    folder.
    """
    roles = [role(name) for name in folders]
    some = [name for name, own in zip(folders, roles, strict=True) if own == "train"] or list(folders)
    first = _part(some[0], listed, labelled)
    if all(roles) or (len(first.classes) > 1 and (roles[folders.index(first.name)] == "train" or len(folders) == 1)):
        _refuse(root, folders, [_part(name, listed, labelled) for name in folders[:FOLDERS]], where)
    if first.labelled:
        parts = [_part(name, listed, labelled) for name in folders[:LABELLED]]
        if all(part.labelled for part in parts):
            _refuse(root, folders, parts, where)
    if not first.classes:
        return
    parts = []
    for name in folders[:FOLDERS]:
        parts.append(_part(name, listed, lambda _: False))
        if not parts[-1].classes:
            return
    found = Counter(name for part in parts for name in part.classes)
    shared = [name for name, count in found.items() if count > 1]
    if len(parts) > 1 and 2 * len(shared) >= len(found):
        _refuse(root, folders, parts, where)


def _look(folder: str, listed: Listed) -> list[str] | None:
    """The folders in a folder, sorted; None where images lie beside them."""
    found = []
    for name, is_folder in itertools.islice(listed(folder), ENTRIES):
        if is_folder:
            found.append(name)
        elif looks_like_image(name):
            return None
    return sorted(found)


def _part(name: str, listed: Listed, labelled: Callable[[str], bool]) -> Part:
    below, found = name, _look(name, listed)
    while found is not None and len(found) == 1 and below.count("/") < DEEP:
        deeper = _look(f"{below}/{found[0]}", listed)
        if deeper is None:
            found = None
            break
        below, found = f"{below}/{found[0]}", deeper
    return Part(name, below, frozenset(found if found and len(found) > 1 else ()), labelled(name))


def _refuse(root: Root, folders: Sequence[str], parts: Sequence[Part], where: str) -> None:
    shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
    classes = sorted(set.union(*(set(part.classes) for part in parts)))
    if classes and all(map(role, classes)) and not all(map(role, folders)):
        fix = (
            "make a folder of each, with the class folders below it, or join them: name the "
            "classes in source.class_names"
        )
        raise DataError(where, f"{root} holds splits ({', '.join(classes[:5])}) below each class", fix)
    raise DataError(where, f"{root} holds parts of a set ({shown}), not classes", _fix(root, parts, where))


def _fix(root: Root, parts: Sequence[Part], where: str) -> str:
    if where == "source.dataset":
        return "fetch it and name its folders with kind: folder"
    ranks = (
        ("test", "validation", None, "train") if where.endswith("test_path") else ("train", None, "validation", "test")
    )
    ordered = sorted(parts, key=lambda part: ranks.index(role(part.name)))
    main = next((part for part in ordered if part.readable), None)
    if main is None:
        return "sort the images into one folder a class, or give their labels in a metadata.csv (file_name, label)"
    fix = f"set {where} to {root}/{main.below}"
    if not where.endswith("test_path"):
        rest = sorted((part for part in parts if part != main), key=lambda part: -ranks.index(role(part.name)))
        fitting = [part for part in rest if part.readable and part.classes <= main.classes]
        fix += f" and source.test_path to {root}/{fitting[0].below}" if fitting else ""
    return f"{fix}, or name the class folders in source.class_names"


def check_files(root: Root, names: Sequence[str], given: str, where: str) -> None:
    """Refuse files of several splits in one set (DataError), but where the pattern `given` itself names each of
    them."""
    of: dict[str | None, list[str]] = {}
    for name in names:
        of.setdefault(_file_role(name), []).append(name)
    written = {ROLES[word.lower()] for word in WORD.findall(given) if word.lower() in ROLES}
    if len(of) < 2 or ("{" in given and of.keys() <= written):
        return
    held_out = next((of[kind] for kind in ("test", "validation") if kind in of), [])
    main = next((of[kind] for kind in ("train", None, "validation") if kind in of), [])
    chosen = [held_out] if where.endswith("test_path") else [main, held_out]
    patterns = [_pattern(own, names) for own in chosen]
    fix = "put each into a folder of its own"
    if all(patterns):
        places = [f"{root}/{pattern}" for pattern in patterns]
        fix = f"set {where} to {places[0]}" + (f" and source.test_path to {places[1]}" if len(places) > 1 else "")
    told = ", ".join(own[0] for own in of.values())
    raise DataError(where, f"{root} holds files of several splits ({told})", fix)


def _file_role(name: str) -> str | None:
    return next(filter(None, map(role, reversed(name.split("/")))), None)


def _pattern(own: Sequence[str], names: Sequence[str]) -> str | None:
    """A folder, or a pattern, that fits just these of the names; None where there is none."""
    folder = own[0].rpartition("/")[0]
    if folder and {name for name in names if name.startswith(f"{folder}/")} == set(own):
        return folder
    digits = re.sub(r"\d+", "*", own[0])
    word = next((word for word in WORD.findall(own[0]) if word.lower() in ROLES), None)
    named = own[0].partition(word)[0] + word + "*" + PurePosixPath(own[0]).suffix if word else digits
    for pattern in (own[0] if len(own) == 1 else digits, named):
        if {n for n in names if n.count("/") == pattern.count("/") and fnmatchcase(n, pattern)} == set(own):
            return pattern
    return None


def without(main: tuple[Root, list[str]], test: tuple[Root, list[str]] | None, where: str) -> tuple[Root, list[str]]:
    """The files of the main set that are not those of the given test set; DataError where none is left."""
    if test is None:
        return main
    held_out = {str(test[0] / name) for name in test[1]}
    kept = [name for name in main[1] if str(main[0] / name) not in held_out]
    if not kept:
        raise DataError(where, "names the files of source.test_path and no other", "give each set files of its own")
    return main[0], kept
