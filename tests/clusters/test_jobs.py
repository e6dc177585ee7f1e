"""Verbs as jobs of a real head with a dashboard and token authentication on loopback: logs, exit codes, stops,
refusals."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import clusters
from tests.support.checkpoints import write_checkpoint
from tests.support.clusters import ROOT, Head

pytestmark = pytest.mark.usefixtures("real_clusters")

SMALL = {
    "split.train": "60",
    "split.validation": "60",
    "split.test": "60",
    "generate.count": "60",
    "generate.shard_size": "10",
    "generate.num_inference_steps": "2",
    "generate.gate.min_std": "0",
    "judge.steps": "5",
    "judge.seeds": "1",
    "resources.actors": "2",
}


@pytest.fixture(scope="module")
def head(real_clusters: None) -> Iterator[Head]:
    with clusters.head() as made:
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"model.checkpoint={write_checkpoint(tmp_path_factory.mktemp('model') / 'model')}"


def mimeo(head: Head, *arguments: str, cwd: Path = ROOT, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        env=head.env | {"PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def submit(head: Head, verb: str, recipe: str, output: Path | str, *sets: str) -> subprocess.CompletedProcess[str]:
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    settings += [word for one in sets for word in ("--set", one)]
    where = ["--cluster", head.dashboard, "--output", str(output)]
    return mimeo(head, "submit", recipe, "--verb", verb, *where, *settings)


def test_generate_match_train_and_search_are_jobs(head: Head, model: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    match = [model, "match.steps=4", "match.batch=8", "match.checkpoint_every=2", "match.samples=0", "match.rank=2"]
    done = submit(head, "match", "quickstart", output, *match)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$ RAY_AUTH_MODE=token ray job submit --address" in done.stdout
    assert "match: generator fine-tuned by distribution matching: match/" in done.stdout
    done = submit(head, "generate", "quickstart", output, *match)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "generate: 60 synthetic images in 6 shards" in done.stdout
    assert mimeo(head, "verify", str(output)).returncode == 0
    train = [
        model,
        "train.arms=[real, augmentation]",
        "train.multiples=[1]",
        "train.seeds=1",
        "train.steps=4",
        "train.batch=8",
    ]
    done = submit(head, "train", "train_digits", output.parent / "train", *train)
    assert done.returncode == 0, done.stdout + done.stderr
    search = [model, "search.ratios=[0, 1]", "search.generator_seeds=1", "search.judge_seeds=1"]
    done = submit(head, "search", "search", output.parent / "search", *search)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((output.parent / "search/results/search.json").read_text())["chosen"] in ("0x", "1x")


def test_a_jobs_exit_code_is_the_verbs(head: Head, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/other.txt").write_text("not a run")
    done = submit(head, "generate", "quickstart", tmp_path / "out")
    assert done.returncode == 5, done.stdout + done.stderr
    assert "error: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("resources.device=cuda", "resources.device: cuda is asked for, the cluster has 0 GPUs"),
        (
            "resources.actors=99",
            "resources.actors: 99 actors of 0.5 CPU are asked for, the cluster has 4 CPUs: 8 of them",
        ),
    ],
)
def test_more_than_the_cluster_has_is_one_line(head: Head, model: str, tmp_path: Path, change: str, says: str) -> None:
    done = submit(head, "generate", "quickstart", tmp_path / "out", model, change)
    assert done.returncode == 6, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {says}")
    assert "Traceback" not in done.stdout


def test_a_stopped_job_gives_its_lock_back_and_can_go_on(head: Head, tmp_path: Path) -> None:
    long = ["pretrain.unet.steps=100000", "pretrain.checkpoint_every=50"]
    settings = [word for one in [*(f"{k}={v}" for k, v in SMALL.items()), *long] for word in ("--set", one)]
    where = ["--cluster", head.dashboard, "--output", str(tmp_path / "out"), "--no-wait"]
    sent = mimeo(head, "submit", "latent", "--verb", "pretrain", *where, *settings)
    assert sent.returncode == 0, sent.stderr
    job_id = re.search(r"job (\S+) is submitted", sent.stdout)[1]  # type: ignore[index]
    deadline = time.monotonic() + 200
    while not list((tmp_path / "out/checkpoints").glob("pretrain*")):
        assert time.monotonic() < deadline, list((tmp_path / "out").rglob("*"))
        time.sleep(0.5)
    words = [str(clusters.RAY), "job", "stop", job_id, "--address", head.dashboard]
    subprocess.run(words, env=head.env, capture_output=True, check=True, timeout=100)
    logs = [str(clusters.RAY), "job", "logs", job_id, "--address", head.dashboard]
    said = subprocess.run(logs, env=head.env, capture_output=True, text=True, check=True).stdout
    assert "error: terminated; the same command goes on from here" in said
    assert not [path for path in (tmp_path / "out").rglob("*lock*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize(("token", "says"), [("0" * 64, "does not accept the token"), (None, "asks for a token")])
def test_a_wrong_and_a_missing_token_are_refused_in_one_line(
    head: Head, tmp_path: Path, token: str | None, says: str
) -> None:
    env = dict(head.env)
    if token is None:
        del env["RAY_AUTH_TOKEN_PATH"]
        env["RAY_AUTH_MODE"] = "disabled"
    else:
        (tmp_path / "token").write_text(token)
        env["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
    done = submit(dataclasses.replace(head, env=env), "generate", "quickstart", tmp_path / "out")
    assert done.returncode == 6, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert says in line
    assert "RAY_AUTH_MODE=token" in line


def test_ctrl_c_leaves_the_job_and_says_how_to_end_it(head: Head, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pipelines.cli", "submit", "quickstart", "--cluster", head.dashboard]
    words += ["--output", str(tmp_path / "out"), "--verb", "plan"]
    process = subprocess.Popen(
        words, env=head.env | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "is submitted" in line:
            assert "ray job stop" in line
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) in (0, 130)  # 0: the short job was over before
