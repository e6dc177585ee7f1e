"""Verification finds every corruption, names its object, and never cries over an untouched output."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cluster.progress import PlainReporter
from engine.shards import records
from engine.shards.manifest import SEAL
from engine.shards.names import PLAN, record_path, tar_path
from engine.shards.verification import verify
from engine.spec import spec_hash, validate
from engine.storage.claim import SPEC, claim, to_yaml
from engine.storage.store import open_store
from tests.support.sealed import make_output

GIVEN_UP = (3, 7, 10, 11, 12, 13, 14)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed output that no test changes: five shards, one of them all quarantined."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    make_output(open_store(folder), given_up=GIVEN_UP)
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of the sealed output, to be damaged."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def objects(root: Path) -> list[str]:
    """Every file that the seal covers, itself included."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name not in (PLAN, SPEC))


def test_an_untouched_output_is_clean(finished: Path) -> None:
    report = verify(open_store(finished))
    assert report.faults == []
    assert (report.shards, report.samples, report.quarantined) == (5, 16, 7)
    assert report.bytes == sum(path.stat().st_size for path in finished.rglob("*.tar"))
    assert len(objects(finished)) == 5 * 2 + 3 + 3


def damage(root: Path, how: str, name: str, other: str, chance: random.Random) -> set[str]:
    """Corrupt one or two files; returns the names of which one must be in a fault, empty if nothing was changed."""
    path, second = root / name, root / other
    data = path.read_bytes()
    if how == "flip":
        position = chance.randrange(len(data))
        path.write_bytes(data[:position] + bytes([data[position] ^ (1 << chance.randrange(8))]) + data[position + 1 :])
    elif how == "cut":
        path.write_bytes(data[: chance.randrange(len(data))])
    elif how == "append":
        path.write_bytes(data + chance.choice([b"\0", b"\n", b" ", bytes(512), bytes(10240), b"x"]))
    elif how == "insert":
        position = chance.randrange(len(data))
        path.write_bytes(data[:position] + b"\0" + data[position:])
    elif how == "delete":
        path.unlink()
    elif how == "rename":
        target = path.with_name(chance.choice(["other", "toy-000099", ".hidden"]) + path.suffix)
        path.rename(target)
    elif how == "copy":
        copy = chance.choice(
            ["data/copy.tar", "data/toy-000005.tar", "data/sub/x.tar", "data/.hidden", "data/toy-000000"]
        )
        (root / copy).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, root / copy)
        return {copy}
    elif how == "overwrite":
        if second.read_bytes() == data:
            return set()
        shutil.copyfile(second, path)
    elif how == "swap":
        if second.read_bytes() == data:
            return set()
        path.write_bytes(second.read_bytes())
        second.write_bytes(data)
        return {name, other}
    elif how == "folder":
        path.unlink()
        path.mkdir()
    return {name}


HOWS = ["flip", "cut", "append", "insert", "delete", "rename", "copy", "overwrite", "swap", "folder"]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(HOWS), st.integers(0, 2**32), st.data())
def test_every_random_corruption_is_found_and_named(
    finished: Path, tmp_path: Path, how: str, seed: int, data: st.DataObject
) -> None:
    root, names = tmp_path / "out", objects(finished)
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(finished, root)
    name, other = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
    touched = damage(root, how, name, other, random.Random(seed))
    report = verify(open_store(root))
    assert bool(report.faults) == bool(touched), (how, name, other)
    if touched:
        assert touched & {fault.partition(": ")[0] for fault in report.faults}, (how, name, other, report.faults)
        assert not any("\n" in fault for fault in report.faults)


def test_every_byte_of_the_small_files_counts(output: Path) -> None:
    for name in (SEAL, record_path("toy-000000"), "data/sizes.json"):
        original = (output / name).read_bytes()
        for position in range(0, len(original), 7):
            changed = bytearray(original)
            changed[position] ^= 1
            (output / name).write_bytes(changed)
            assert any(fault.startswith(name) for fault in verify(open_store(output)).faults), (name, position)
        (output / name).write_bytes(original)
    assert verify(open_store(output)).faults == []


def test_every_cut_at_a_member_boundary_is_found(output: Path) -> None:
    path = output / tar_path("toy-000000")
    whole = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        boundaries = [member.offset for member in tar]
    assert len(boundaries) == 12
    for boundary in boundaries:
        for ending in (b"", bytes(1024)):
            path.write_bytes(whole[:boundary] + ending)
            faults = verify(open_store(output)).faults
            assert faults == [
                f"{tar_path('toy-000000')}: has {boundary + len(ending):,} bytes, {len(whole):,} were sealed"
            ]


def test_swapped_shards_are_told_apart(output: Path) -> None:
    first, second = output / tar_path("toy-000000"), output / tar_path("toy-000001")
    first.rename(output / "x")
    second.rename(first)
    (output / "x").rename(second)
    assert verify(open_store(output)).faults == [
        "data/toy-000000.tar: holds what belongs in data/toy-000001.tar",
        "data/toy-000001.tar: holds what belongs in data/toy-000000.tar",
    ]


def test_a_rewritten_record_that_checks_in_itself_is_found(output: Path) -> None:
    store = open_store(output)
    record = records.load(store, "toy-000000")
    assert record is not None
    for change in ({"sha256": "00" * 32}, {"plan_digest": "x"}, {"quarantined": ()}, {"count": 5}):
        store.replace(record_path("toy-000000"), replace(record, **change).to_json())
        assert verify(store).faults == ["data/toy-000000.json: does not agree with the manifest"]
    reason = (replace(record.quarantined[0], reason="another"),)
    store.replace(record_path("toy-000000"), replace(record, quarantined=reason).to_json())
    assert verify(store).faults == ["data/toy-000000.json: does not agree with the manifest"]
    store.replace(record_path("toy-000000"), replace(record, host="another", seconds=1.0).to_json())
    assert verify(store).faults == []  # who made it is not part of the data set


def test_an_unfinished_run_is_said_so(output: Path) -> None:
    (output / SEAL).unlink()
    for place in (output, output / "nothing"):
        (fault,) = verify(open_store(place)).faults
        assert fault.startswith("manifest.json: ")
        assert "not finished" in fault


def test_plan_and_recipe_must_be_those_of_the_manifest(output: Path, tmp_path: Path) -> None:
    store = open_store(output)
    plan = json.loads(store.read(PLAN))
    for change in ({"count": 24}, {"name": "other"}, {"shard_size": 6}, {"spec_hash": "0"}):
        store.replace(PLAN, json.dumps({**plan, **change}).encode())
        assert verify(store).faults == ["plan.json: is not the plan of this manifest"]
    store.replace(PLAN, b"{")
    assert verify(store).faults == ["plan.json: is not JSON"]
    store.remove(PLAN)
    assert verify(store).faults == []  # a published copy need not carry the plan
    spec = validate({"name": "toy", "source": {"kind": "digits"}})
    store.create(SPEC, to_yaml(spec).encode())
    assert verify(store).faults == ["spec.yaml: is not the recipe of this manifest"]
    store.replace(SPEC, b"name: [")
    assert verify(store).faults[0].startswith("spec.yaml: ")
    mine = open_store(tmp_path / "mine")
    claim(mine, spec)
    make_output(mine, spec_hash=spec_hash(spec))
    assert verify(mine).faults == []


def test_progress_and_memory_stores(capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store("memory://verify/out")
    make_output(store)
    assert verify(store, PlainReporter(sys.stderr)).faults == []
    assert "5/5 shards" in capsys.readouterr().err
    store.replace(tar_path("toy-000002"), b"x")
    assert verify(store).faults[0].startswith("data/toy-000002.tar: has 1 bytes")


def test_pipes_in_the_output_do_not_hang(output: Path) -> None:
    (output / tar_path("toy-000001")).unlink()
    os.mkfifo(output / tar_path("toy-000001"))
    assert verify(open_store(output)).faults == ["data/toy-000001.tar: is missing"]


def test_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, engine.shards.verification, engine.shards.shard_status, "
        "engine.shards.shard_reader, engine.storage.lock;"
        "print([name for name in ('torch', 'ray', 'fsspec', 'webdataset') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"
