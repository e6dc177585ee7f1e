"""Random kill -9 of drivers and actors: nothing lost, nothing twice, nothing that was published touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.chaos.auditor import Auditor
from tests.chaos.kill import Programme


@pytest.mark.timeout(1800)
def test_killed_runs_are_resumed_to_the_same_output(tmp_path: Path) -> None:
    programme = Programme(tmp_path, kills=3, seed=2, count=80)
    outcome = programme.run()
    assert outcome.faults == []
    assert outcome.kills.total() >= 3
    assert set(outcome.kills) == {"drivers", "actors"}
    auditor_sees(tmp_path / "reference", tmp_path / "tampered")


def auditor_sees(good: Path, folder: Path) -> None:
    """The witness itself: each kind of damage to a good output is a fault."""
    shutil.copytree(good, folder)
    assert Auditor(folder).conclude() == []
    tar, other = sorted((folder / "data").glob("*.tar"))[:2]
    data, record = tar.read_bytes(), tar.with_suffix(".json")
    for damage in (data[:-10240], data[:10000] + b"x" + data[10001:], other.read_bytes(), None):
        tar.unlink() if damage is None else tar.write_bytes(damage)
        assert Auditor(folder).conclude()
        tar.write_bytes(data)
    witness = Auditor(folder)
    assert witness.conclude() == []
    tar.write_bytes(data)  # equal bytes, written again
    assert any("changed after it was published" in fault for fault in witness.look())
    text = record.read_text()
    record.write_text(text.replace('"count":20', '"count":19'))
    assert Auditor(folder).conclude()
    record.write_text(text)
    (folder / "data/.tmp-stray").write_bytes(b"")
    assert any("left behind" in fault for fault in Auditor(folder).conclude())
