"""The seal of an output's other files: every flip is found, a command's own writing is no change, a kill loses
nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.shards import seal
from engine.shards.seal import OPEN, OTHERS, sealing
from engine.shards.verification import verify
from engine.spec import spec_hash, validate
from engine.storage.claim import SPEC, claim
from engine.storage.store import Store, open_store
from tests.support.sealed import make_output

FILES = {
    "catalog/catalog.parquet": b"images" * 99,
    "catalog/_done.json": b'{"digest": "a"}\n',
    "conditions/features.parquet": bytes(range(256)) * 40,
    "model/unet/diffusion_pytorch_model.safetensors": b"\x08\0\0\0\0\0\0\0{}      weights",
    "match/pytorch_lora_weights.safetensors": b"lora" * 64,
    "results/judge.json": b'{"accuracy": 0.91}',
    "report.html": b"<html>91 %</html>",
    "README.md": b"# card\n",
}
RUN = validate({"name": "toy", "source": {"kind": "digits"}})


def command(store: Store, *names: str, text: bytes = b"") -> None:
    """What a verb does to an output: it writes these files under the lock."""
    with sealing(store):
        for name in names:
            store.replace(name, text or FILES[name])


def fail(store: Store, error: BaseException, *names: str) -> None:
    """A verb that ends by an error after it has written these files."""
    with sealing(store):
        for name in names:
            store.replace(name, b"half of it")
        raise error


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole output, made by one command."""
    folder = tmp_path_factory.mktemp("sealed") / "out"
    store = open_store(folder)
    claim(store, RUN)
    with sealing(store):
        make_output(store, spec_hash=spec_hash(RUN))
        for name, data in FILES.items():
            store.replace(name, data)
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def everything(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_flipped_byte_in_any_file_of_an_output_is_found(output: Path) -> None:
    store = open_store(output)
    assert verify(store).faults == []
    assert verify(store).others.uncovered == verify(store).others.pending == []
    names = everything(output)
    assert set(names) > {
        *FILES,
        SPEC,
        OTHERS,
        "plan.json",
        "manifest.json",
        "data/toy-000000.tar",
        "data/toy-000000.json",
    }
    for name in names:
        whole = (output / name).read_bytes()
        for position in {0, len(whole) // 2, len(whole) - 1}:
            (output / name).write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            assert any(fault.startswith(f"{name}: ") for fault in verify(store).faults), (name, position)
        (output / name).write_bytes(whole)
    assert verify(store).faults == []


@pytest.mark.parametrize("name", ["report.html", "catalog/_done.json", SPEC])
def test_what_is_gone_or_cut_is_found(output: Path, name: str) -> None:
    (output / name).write_bytes((output / name).read_bytes()[:-1])
    assert f"{name}: has " in " ".join(verify(open_store(output)).faults)
    (output / name).unlink()
    assert f"{name}: is missing" in verify(open_store(output)).faults


def test_a_report_made_anew_is_no_change_and_seals_nothing_else(output: Path) -> None:
    store = open_store(output)
    store.replace("results/judge.json", b'{"accuracy": 0.99}')
    store.replace("report.html", b"<html>99 %</html>")
    seal.update(store, ["report.html"])
    assert verify(store).faults == ["results/judge.json: has changed bytes"]
    command(store, "report.html", "README.md", text=b"of another command")
    assert verify(store).faults == ["results/judge.json: has changed bytes"]
    command(store, "results/judge.json")  # judged again: what it writes is its own
    assert verify(store).faults == []


def test_files_from_elsewhere_are_told_and_never_sealed(output: Path) -> None:
    store = open_store(output)
    (output / "notes.txt").write_text("mine")
    (output / "catalog" / ("odd\n" + "x" * 160)).write_text("no name that the engine gives")
    os.mkfifo(output / "results" / "pipe")
    for _ in range(2):
        report = verify(store)
        assert (report.faults, report.others.uncovered) == ([], ["notes.txt", "results/pipe"])
        command(store, "report.html", text=b"again")


def test_an_output_of_before_stays_whole_and_says_what_is_not_covered(output: Path) -> None:
    store = open_store(output)
    (output / OTHERS).unlink()
    report = verify(store)
    assert report.faults == []
    assert set(report.others.uncovered) == {
        *FILES,
        SPEC,
        "plan.json",
        "manifest.json",
        "manifest.parquet",
        "quarantine.parquet",
    }
    command(store, "report.html", text=b"by this engine")
    report = verify(store)
    assert (report.faults, report.others.sealed) == ([], 1)
    assert "report.html" not in report.others.uncovered
    assert "catalog/_done.json" in report.others.uncovered


def test_a_killed_command_is_no_change_and_the_next_one_seals_for_both(output: Path) -> None:
    store = open_store(output)
    with pytest.raises(KeyboardInterrupt):
        fail(store, KeyboardInterrupt(), "results/judge.json", "results/new.json")
    store.remove("report.html")  # not by the command, but while it had the output
    report = verify(store)
    assert report.faults == []
    assert sorted(report.others.pending) == ["report.html", "results/judge.json", "results/new.json"]
    (output / "match/pytorch_lora_weights.safetensors").write_bytes(b"LORA" * 64)
    assert verify(store).others.pending  # told as pending: it may be the command's
    command(store, "report.html")
    report = verify(store)
    assert (report.faults, report.others.uncovered, report.others.pending) == ([], [], [])
    assert not (output / OPEN).exists()


def test_an_error_of_the_command_seals_too(output: Path) -> None:
    store = open_store(output)
    with pytest.raises(DataError, match="is bad"):
        fail(store, DataError("x", "is bad", "mend it"), "results/judge.json")
    assert verify(store).faults == []
    assert not (output / OPEN).exists()


def test_a_seal_that_does_not_fit_itself_is_a_fault(output: Path) -> None:
    store = open_store(output)
    for text in (b"", b"{}", b"[]", b'{"files": {"a": 1}}', b"[" * 10**5, json.dumps({"files": {}}).encode()):
        store.replace(OTHERS, text)
        assert verify(store).faults == [f"{OTHERS}: was changed or cut"]
        with pytest.raises(DataError, match="was changed or cut"):
            command(store, "report.html")


def test_object_stores_have_versions_too() -> None:
    store = open_store("memory://sealed/out")
    make_output(store)
    with sealing(store):
        store.replace("results/judge.json", b"1")
    store.replace("results/judge.json", b"2")
    command(store, "report.html")
    assert verify(store).faults == ["results/judge.json: has changed bytes"]
