"""Jobs before they are sent: what would be uploaded, the command that does the same, the environment that Ray takes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from ray.runtime_env import RuntimeEnv

from engine.cluster import jobs, upload
from engine.errors import ClusterError, ConfigError

ROOT = Path(__file__).resolve().parents[3]


def folder(tmp_path: Path, **files: int) -> Path:
    for name, size in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    return tmp_path


def test_the_size_is_that_of_what_no_ignore_file_names(tmp_path: Path) -> None:
    made = folder(tmp_path, a=100, runs__big=10**6, sub__b=7, sub__c=9)
    (made / ".gitignore").write_text("runs/\n")
    (made / "sub/.rayignore").write_text("c\n")
    own = len("runs/\n") + len("c\n")
    assert upload.survey(made).bytes == 107 + own


def test_too_much_is_refused_with_the_largest_folders(tmp_path: Path) -> None:
    made = folder(tmp_path, small=10, data__one__x=50 * 2**20, data__two__x=30 * 2**20)
    with pytest.raises(ConfigError) as caught:
        jobs.make(["run"], ["r.yaml"], working_dir=made, metadata={})
    assert "80 MiB would be sent to the cluster, more than 64 (largest: data/one 50 MiB, data/two 30 MiB" in str(
        caught.value
    )
    assert ".rayignore" in str(caught.value)


def test_this_repository_is_small_enough() -> None:
    assert upload.survey(ROOT).bytes < 4 * 2**20


def test_the_command_is_what_is_submitted(tmp_path: Path) -> None:
    job = jobs.make(
        ["study", "ablation"],
        ["my recipe.yaml", "--set", "a.b=[1, 2]"],
        working_dir=tmp_path,
        metadata={"k": "v"},
        driver_cpus=1,
    )
    words = shlex.split(job.command("http://h:8265"))
    at = words.index("--")
    assert words[at + 1 :] == [
        "python",
        "-m",
        "pipelines.cli",
        "study",
        "ablation",
        "my recipe.yaml",
        "--set",
        "a.b=[1, 2]",
    ]
    options = dict(zip(words[4:at:2], words[5:at:2], strict=True))
    assert options["--address"] == "http://h:8265"
    assert json.loads(options["--metadata-json"]) == {"k": "v"}
    assert options["--entrypoint-num-cpus"] == "1"
    env = json.loads(options["--runtime-env-json"])
    assert env | {"working_dir": str(tmp_path)} == job.runtime_env
    assert jobs.make(["run"], ["x"], working_dir=ROOT, metadata={}).entrypoint == "python -m pipelines.run x"


def test_packages_are_installed_under_the_pins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"constraints.txt: is missing"):
        jobs.make(["run"], ["x"], working_dir=tmp_path, metadata={}, install=True)
    env = jobs.make(["run"], ["x"], working_dir=ROOT, metadata={}, install=True).runtime_env
    packages = RuntimeEnv(**env)["pip"]["packages"]
    assert packages[0] == "-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
    assert any(one.startswith("diffusers") for one in packages)
    assert not any(one.startswith("ray") for one in packages)


def test_no_server_is_one_line() -> None:
    with pytest.raises(ClusterError, match=r"^http://127.0.0.1:1: no job server answers"):
        jobs.client("http://127.0.0.1:1")
