"""The claim on an output: its first run writes `spec.yaml` there, and every later one must be the same run."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import yaml

from engine import output, regular
from engine.errors import ConfigError, DataError, MimeoError, OutputInUseError
from engine.spec import RunSpec, differences, identity, plain, validate
from engine.spec import yaml as strict_yaml
from engine.storage.store import Store

SPEC = output.SPEC
_SHOWN = 5
_END = b"\n...\n"  # YAML's end of a document: a file that was cut has none
_HEAD = "# The resolved recipe of this output. mimeo compares it with the recipe of every later run.\n"


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either YAML 1.1 or our strict reader would take for something else."""


for _resolvers in (yaml.SafeDumper.yaml_implicit_resolvers, strict_yaml.Loader.yaml_implicit_resolvers):
    for _first, _rules in _resolvers.items():
        for _tag, _pattern in _rules:
            _Dumper.add_implicit_resolver(_tag, _pattern, [_first])


def claim(store: Store, spec: RunSpec, *, held: bool = False) -> None:
    """Make the output this run's: write `spec.yaml` the first time, compare it later.

    Call it before `hold` and, with `held`, inside: there an output that holds nothing but a recipe, such as one whose
    data turned out to be unusable, takes a corrected one.
    Raises OutputInUseError where the output holds something else or a run of another name, ConfigError where the recipe
    has changed (`resources` may), DataError where the stored recipe is broken.
    """
    for _ in range(2):
        stored = _read(store) or _write(store, spec)
        if stored is None:
            continue
        if identity(stored) == identity(spec):
            return
        if _is_begun(store):
            _refuse(store, stored, spec)
        if held:
            store.replace(SPEC, to_yaml(spec).encode())
        return
    raise OutputInUseError(store.url, "is being changed by another process", "choose another output")


def read_spec(store: Store) -> RunSpec:
    """The recipe of an output; raises DataError where no run was started or the recipe cannot be read."""
    spec = _read(store)
    if spec is None:
        raise DataError(store.url, f"holds no run of mimeo ({SPEC} is missing)", "check the path")
    return spec


def is_output(folder: Path) -> bool:
    """Whether a local folder holds a run of mimeo, going by how its recipe begins."""
    try:
        with regular.opened(folder / SPEC) as stream:
            return stream.read(len(_HEAD)) == _HEAD.encode()
    except OSError:
        return False


def to_yaml(spec: RunSpec) -> str:
    """The resolved spec as YAML that strict and ordinary YAML readers take for the same values."""
    return _HEAD + yaml.dump(
        plain(spec), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, explicit_end=True
    )


def _write(store: Store, spec: RunSpec) -> RunSpec | None:
    """Write the recipe into an empty output; None where another run was first and must be compared with."""
    strange = next((entry.name for entry in store.list() if entry.name != SPEC), None)
    if strange is not None and not store.exists(SPEC):
        raise OutputInUseError(
            store.url, f"is not empty and not an output of mimeo (it holds {strange})", "choose an empty folder"
        )
    return spec if store.create(SPEC, to_yaml(spec).encode()) else None


def _is_begun(store: Store) -> bool:
    return any(entry.name != SPEC for entry in store.list())


def _refuse(store: Store, stored: RunSpec, spec: RunSpec) -> NoReturn:
    if stored.name != spec.name:
        raise OutputInUseError(store.url, f"holds the run {stored.name!r}, not {spec.name!r}", "choose another output")
    changed = differences(identity(stored), identity(spec))
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    shown = ", ".join(change[:200] for change in changed[:_SHOWN])
    raise ConfigError(
        store.url,
        f"this output was begun with other settings: {shown}{more}",
        "use the recipe that it was begun with, or another --output",
    )


def _read(store: Store) -> RunSpec | None:
    where = f"{store.url}/{SPEC}"
    try:
        text = store.read(SPEC)
    except FileNotFoundError:
        return None
    try:
        data = strict_yaml.parse(text.decode(), where)
        if not isinstance(data, dict):
            raise DataError(where, "holds no recipe", "restore it, or choose another output")
        spec = validate(data, where)
    except (UnicodeDecodeError, ConfigError) as error:
        what = error.what if isinstance(error, MimeoError) else "is not UTF-8 text"
        raise DataError(where, what, "restore it, use the engine that wrote it, or choose another output") from None
    if not text.endswith(_END):
        raise DataError(where, "ends in the middle", "restore it, or choose another output")
    return spec
