"""Bad input ends in one clear line, the right exit code, no traceback, and soon."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 3.0


def mimeo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, from another folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env=env,
        check=False,
    )


def _work() -> float:
    """Seconds of processors that this process's ended children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def images(folder: Path, per_class: int = 3) -> Path:
    """A small real-looking image folder with two classes."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name / f"{index}.png")
    return folder


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


WORKERS = ("--set", "resources.train_workers=200")
FOLDER = "name: bad\nimages: {size: 16}\nsource: {kind: folder, path: FOLDER}\n"


def expect(result: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    lines = result.stderr.strip().splitlines()
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in says:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["generate", "nowhere.yaml"], 2, ["no such recipe"]),
        (["generate", "quickstart", "--set", "generate.cout=5"], 2, ["did you mean count?"]),
        (["generate", "quickstart", "--set", "generate.count=-5"], 2, ["generate.count", "-5"]),
        (["generate", "quickstart", "--set", "generate.scheduler=dpmsolvr++"], 2, ["dpmsolver++"]),
        (["generate", "quickstart", "--set", "generate.scheduler=flow_euler"], 2, ["flow matching", "dpmsolver++"]),
        (
            ["plan", "quickstart", "--set", "pretrain.denoiser=dit"],
            2,
            ["classes only", "generate.visual_token to none"],
        ),
        (["plan", "latent", "--set", "pretrain.space=pixel"], 2, ["pretrain.space pixel", "visual_token to none"]),
        (["plan", "quickstart", "--set", "match.visual_token=own"], 2, ["match.visual_token to none"]),
        (
            ["plan", "quickstart", "--set", "pretrain.space=pixel", "--set", "images.size=128"],
            2,
            ["images up to 64 pixels", "images.size is 128"],
        ),
        (["train", "train_digits", "--set", "train.arms=[real, reconstructed]"], 2, ["train.arms", "VAE"]),
        (["generate", "quickstart", "--set", "model.checkpoint=/nowhere/model"], 2, ["/nowhere/model"]),
        (["generate", "quickstart", "--set", "model.lora=/nowhere/l.safetensors"], 2, ["/nowhere/l.safetensors"]),
        (["generate", "quickstart", "--set", "split.train=5000"], 3, ["split"]),
        (["generate", "quickstart", "--output", "ftp://host/x"], 2, ["ftp"]),
        (["generate", "quickstart", "--output", "s3:/bucket/x"], 2, ["s3"]),
        (["generate", "quickstart", "--output", "/proc/nope/x"], 4, ["/proc/nope"]),
        (["generate"], 2, ["RECIPE"]),
        (["generate", "quickstart", "--outptu", "x"], 2, ["--outptu"]),
        (["genrate", "quickstart"], 2, ["genrate"]),
        (["plan", "quickstart", "--set", "seed=1.5"], 2, ["whole number"]),
        (["match", "quickstart"], 2, ["has no match section"]),
        (["match", "quickstart", "--set", "match.rank=0"], 2, ["match.rank", "got 0"]),
        (["match", "quickstart", "--set", "match.mmd_weight=.nan"], 2, ["match.mmd_weight", "finite"]),
        (["match", "quickstart", "--set", "match.batch=1"], 2, ["batch 1", "at least 2 images"]),
        (["match", "latent", "--set", "match.batch=200", *WORKERS], 2, ["200 workers", "100 training images"]),
        (["study", "ablation", "quickstart", "--set", "ablation.arms.lora={match.mdd: x}"], 2, ["did you mean mmd"]),
        (["study", "ablatoin", "quickstart"], 2, ["ablatoin"]),
        (["verify", "nowhere"], 3, ["nowhere"]),
        (["status", "nowhere"], 3, ["nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_one_line_and_exit_code(tmp_path: Path, arguments: list[str], code: int, says: list[str]) -> None:
    before = _work()
    result = mimeo(*arguments, cwd=tmp_path)
    work = _work() - before
    expect(result, code, *says)
    assert work < 3 * SECONDS  # three times the promise, of a processor's time: a loaded machine must not fail the test


def test_unknown_targets_are_known_before_a_model_is_loaded(tmp_path: Path) -> None:
    from tests.support.checkpoints import write_checkpoint

    model = write_checkpoint(tmp_path / "model")
    arguments = ["--set", f"model.checkpoint={model}", "--set", "match.targets=[to_q, to_z]"]
    expect(mimeo("match", "quickstart", *arguments, cwd=tmp_path), 2, "match.targets", "named to_z", "to_q")
    assert not (tmp_path / "runs/quickstart/spec.yaml").exists()


def test_missing_folder(tmp_path: Path) -> None:
    expect(mimeo("generate", recipe(tmp_path, FOLDER.replace("FOLDER", "nowhere")), cwd=tmp_path), 3, "nowhere")


def test_empty_class(tmp_path: Path) -> None:
    images(tmp_path / "photos")
    (tmp_path / "photos" / "emu").mkdir()
    expect(mimeo("generate", recipe(tmp_path, FOLDER.replace("FOLDER", "photos")), cwd=tmp_path), 3, "emu")


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    expect(mimeo("generate", "quickstart", "--output", "file/run", cwd=tmp_path), 4, "file")


def test_folder_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    expect(mimeo("generate", "quickstart", "--output", "mine", cwd=tmp_path), 5, "mine")
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["thesis.txt"]


def test_output_of_another_run_and_changed_recipe(tmp_path: Path) -> None:
    from engine import spec as specs
    from engine.storage.claim import claim
    from engine.storage.store import open_store

    store = open_store(str(tmp_path / "out"))
    claim(store, specs.load(ROOT / "pipelines/recipes/quickstart.yaml"))
    store.create("catalog/catalog.parquet", b"begun")
    before = (tmp_path / "out" / "spec.yaml").read_bytes()
    changed = mimeo("generate", "quickstart", "--set", "generate.guidance_scale=3", "--output", "out", cwd=tmp_path)
    expect(changed, 2, "generate.guidance_scale")
    expect(mimeo("generate", "quickstart", "--set", "name=other", "--output", "out", cwd=tmp_path), 5, "out")
    assert (tmp_path / "out" / "spec.yaml").read_bytes() == before


def test_output_that_is_in_use(tmp_path: Path) -> None:
    from engine import spec as specs
    from engine.storage.claim import claim
    from engine.storage.lock import hold
    from engine.storage.store import open_store

    store = open_store(str(tmp_path / "out"))
    claim(store, specs.load(ROOT / "pipelines/recipes/quickstart.yaml"))
    with hold(store, "mimeo test"):
        expect(mimeo("generate", "quickstart", "--output", "out", cwd=tmp_path), 5, str(os.getpid()))


def test_help_needs_no_torch_and_no_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from pipelines.cli import execute; execute(['--help']); print([m "
        "for m in ('torch', 'ray', 'diffusers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip().endswith("[]")


def test_plan_of_a_billion(tmp_path: Path) -> None:
    before = _work()
    code = (
        "import re, sys; from pipelines.cli import execute\n"
        "status = execute(['plan', 'quickstart', '--set', 'generate.count=1e9'])\n"
        "print(status, int(re.search(r'VmHWM:\\s+(\\d+)', "
        "open('/proc/self/status').read())[1]) // 1024, [m for m in ('torch', 'ray') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
    )
    status, megabytes, modules = result.stdout.strip().splitlines()[-1].split(" ", 2)
    assert (status, modules) == ("0", "[]")
    assert int(megabytes) < 300
    assert "1,000,000,000" in result.stdout
    assert _work() - before < 3 * SECONDS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["quickstart", "--output", "runs/x"], "would lie in the job's own folder"),
        (["quickstart"], "would lie in the job's own folder"),
        (["quickstart", "--output", "s3://b/x", "--verb", "submit"], "is no verb for a cluster"),
        (["quickstart", "--output", "s3://b/x", "--set", "generate.cout=5"], "did you mean count?"),
        (["nowhere.yaml", "--output", "s3://b/x"], "no such recipe"),
    ],
)
def test_what_no_cluster_could_run_is_not_submitted(tmp_path: Path, arguments: list[str], says: str) -> None:
    expect(mimeo("submit", "--cluster", "http://127.0.0.1:1", *arguments, cwd=tmp_path), 2, says)


def test_a_recipe_outside_the_folder_that_is_sent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    path = recipe(tmp_path, "name: x\nsource: {kind: digits}\nimages: {size: 8}\n")
    words = ["submit", "--cluster", "http://127.0.0.1:1", path, "--output", "s3://b/x", "--working-dir", "sent"]
    expect(mimeo(*words, cwd=tmp_path), 2, "lies outside the folder that is sent")
    expect(
        mimeo("submit", "--cluster", "http://127.0.0.1:1", path, "--output", "/shared/x", cwd=tmp_path),
        6,
        "no job server",
    )
