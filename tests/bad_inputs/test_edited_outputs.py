"""Outputs that a hand, a disk or another program has changed: each verb that reads them ends in a result or in one
line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_inputs.attacks import Attack, check_attack
from tests.support.hostile import judged_output

RIGHT = (0, 2, 3, 4, 5)
REFUSED = (2, 3, 4, 5)
DEEP = b"[" * 200_000 + b"]" * 200_000
USAGE = {
    "host": "a",
    "pid": 1,
    "device": "cpu",
    "device_name": "c",
    "device_seconds": 1.0,
    "booked_seconds": 0.5,
    "joules": None,
    "booked_joules": 0.0,
    "updated": 1.0,
}


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def nan(data: bytes) -> bytes:
    """The first number becomes NaN."""
    text = data.decode()
    at = next(k for k, c in enumerate(text) if c.isdigit() and text[k - 1] in " :[")
    end = next(k for k in range(at, len(text)) if text[k] not in "0123456789.")
    return (text[:at] + "NaN" + text[end:]).encode()


def other_types(data: bytes) -> bytes:
    """Each value of the object becomes one of another type."""
    return json.dumps(
        {key: 7 if isinstance(value, str | dict | list) else "7" for key, value in json.loads(data).items()}
    ).encode()


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "empty": lambda data: b"",
    "list": lambda data: b"[]",
    "object": lambda data: b"{}",
    "null": lambda data: b"null",
    "deep": lambda data: DEEP,
    "binary": lambda data: bytes(range(256)),
}
JSON_EDITS = {"NaN": nan, "other types": other_types, "long number": lambda data: b'{"digest": ' + b"9" * 5000 + b"}"}
JSONS = (
    "catalog/_done.json",
    "plan.json",
    "manifest.json",
    "data/hostile-000000.json",
    "results/judge.json",
    "results/summary.json",
    "results/seconds.json",
    "results/pretrain.json",
    "results/match.json",
    "results/evaluate.json",
    "usage/worker.json",
)
OTHERS = (
    "catalog/catalog.parquet",
    "catalog/quarantine.parquet",
    "manifest.parquet",
    "quarantine.parquet",
    "spec.yaml",
)
READERS = {
    "report": (*JSONS, *OTHERS),
    "verify": ("manifest.json", "manifest.parquet", "quarantine.parquet", "plan.json", "data/hostile-000000.json"),
    "status": ("plan.json", "manifest.json", "spec.yaml", "data/hostile-000000.json", "usage/worker.json"),
    "run": ("results/summary.json", "catalog/_done.json", "spec.yaml"),
}

NOT_NEEDED = (
    "results/summary.json",
    "results/seconds.json",
    "plan.json",
    "usage/worker.json",
    "data/hostile-000000.json",
)
MUST = {("report", name) for name in (*JSONS, *OTHERS) if name not in NOT_NEEDED} | {("run", "results/summary.json")}
MUST |= {("verify", name) for name in READERS["verify"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A judged output; files of stages that it has not been through stand in with what their writers write."""
    from engine.evaluation.run_summary import summary

    made = judged_output(tmp_path_factory.mktemp("edited"))
    summary(made.spec, made.store)
    curve = {"steps": 2, "seconds": 1.0, "step": [1, 2], "loss": [2.0, 1.0]}
    match = {"images": 50, **curve, "phase_step": [2], "denoising": [1.0], "mmd": [1.0], "levels": [[1.0] * 5]}
    evaluated = {"covers": "", "seeds": {}, "sets": {}, "corruptions": None, "gap": None, "class_names": []}
    evaluated |= {"settings": "", "classifiers": "saved", "level": 0.95}
    for name, data in (
        ("results/match.json", match),
        ("results/evaluate.json", evaluated),
        ("usage/worker.json", USAGE),
    ):
        made.store.replace(name, json.dumps(data).encode())
    for name in ("conditions/captions.parquet", "conditions/classes.parquet", "model/mimeo.json", "report.html"):
        made.store.replace(name, b"there")
    return Path(made.store.url)


def rows() -> list[tuple[str, str, str]]:
    found = []
    for verb, names in READERS.items():
        for name in names:
            edits = {**EDITS, **(JSON_EDITS if name.endswith(".json") else {})}
            found += [(verb, name, edit) for edit in edits]
    return found


def arguments(verb: str) -> tuple[str, ...]:
    return ("run", "{here}/recipe.yaml", "--output", "{here}/out") if verb == "run" else (verb, "{here}/out")


def lay(finished: Path, here: Path) -> None:
    shutil.copy(finished / "spec.yaml", here / "recipe.yaml")
    shutil.copytree(finished, here / "out")


@pytest.mark.parametrize(("verb", "name", "edit"), rows(), ids=lambda part: part)
def test_an_edited_output_is_read_or_one_line(finished: Path, tmp_path: Path, verb: str, name: str, edit: str) -> None:
    def make(here: Path) -> None:
        lay(finished, here)
        path = here / "out" / name
        path.write_bytes({**EDITS, **JSON_EDITS}[edit](path.read_bytes()))

    codes = REFUSED if (verb, name) in MUST and edit in EDITS else RIGHT
    check_attack(
        Attack(f"{verb} {name} {edit}", arguments(verb), codes, make=make, changes=True, progress=True), tmp_path
    )


@pytest.mark.parametrize("verb", READERS)
def test_the_same_output_unchanged_is_read(finished: Path, tmp_path: Path, verb: str) -> None:
    """Without this the table above would pass on an output that no verb can read."""
    check_attack(Attack(verb, arguments(verb), (0,), make=lambda here: lay(finished, here), changes=True), tmp_path)
