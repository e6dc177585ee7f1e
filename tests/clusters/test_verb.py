"""`mimeo cluster`: lines and exit codes, without torch and, for --help, without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import execute
from tests.support.clusterfiles import CLUSTERS, REMOVE, ROOT, planted


def test_good_files(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(CLUSTERS / "aws.yaml"), str(CLUSTERS / "kuberay/rayjob.yaml")]
    assert execute(["cluster", *files]) == 0
    assert capsys.readouterr().out.splitlines() == [f"ok: {files[0]} (ray up)", f"ok: {files[1]} (RayJob)"]


def test_a_bad_file_beside_a_good_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = planted("aws.yaml", "available_node_types.gpu-spot", REMOVE, tmp_path)
    bad.write_text(bad.read_text().replace("max_workers: 16", "max_workers: 1"))
    assert execute(["cluster", str(bad), str(CLUSTERS / "gcp.yaml")]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{bad}: available_node_types.")
    assert any(line.startswith(f"advice: {bad}: ") for line in lines)
    assert lines[-1] == f"ok: {CLUSTERS / 'gcp.yaml'} (ray up)"


def test_ray_adds_no_lines_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("cluster_name: x\nprovider: {type: aws, region: r}\nmax_workers: 3\n")
    command = [sys.executable, "-m", "pipelines.cluster", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr == ""
    assert all(line.startswith(f"{path}: ") for line in result.stdout.splitlines())


def test_no_file_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["cluster"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_light() -> None:
    code = (
        "import sys\n"
        "from pipelines.cli import execute\n"
        "execute(['cluster', '--help'])\n"
        "print(sorted({'ray', 'torch', 'jsonschema'} & set(sys.modules)))\n"
        f"execute(['cluster', {str(CLUSTERS / 'kuberay/rayjob.yaml')!r}])\n"
        "print(sorted({'ray', 'torch'} & set(sys.modules)))\n"
        f"execute(['cluster', {str(CLUSTERS / 'aws.yaml')!r}])\n"
        "print(sorted({'torch', 'boto3'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert [line for line in result.stdout.splitlines() if line.startswith("[")] == ["[]", "[]", "[]"]
