"""One shard from plan to record: what is in it, what is drawn again or given up, and what is left alone."""

from __future__ import annotations

import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.conditions.table import Conditions
from engine.diffusion import checkpoint as checkpoints
from engine.diffusion.sampler import Drawn, Request, Sampler
from engine.errors import DataError
from engine.generation import generation_worker as worker_module
from engine.generation.generation_worker import ShardWorker
from engine.generation.meter import Meter, cpu_name
from engine.generation.requests import Requests
from engine.generation.sample_plan import Plan
from engine.shards import cost, records
from engine.shards.names import PlanFacts
from engine.spec import RunSpec, spec_hash
from engine.spec.recipe import FastSpec
from engine.storage.store import open_store
from tests.support.checkpoints import write_checkpoint
from tests.support.outputs import digits_spec

N, K, WIDTH = 12, 3, 64
CLASSES = ("zero", "one", "two")
Change = Callable[[Request, Drawn], Drawn]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "digits")


def make_conditions() -> Conditions:
    random = np.random.default_rng(0)
    labels = np.arange(N, dtype=np.int32) % K
    features = random.normal(size=(N, WIDTH)).astype(np.float32)
    return Conditions(
        keys=tuple(f"image{i:02d}" for i in range(N)),
        labels=labels,
        captions=("",) * N,
        prompts=tuple(f"photo of digit {CLASSES[k]} {i}" for i, k in enumerate(labels)),
        features=features,
        class_means=np.stack([features[labels == k].mean(0) for k in range(K)]),
        class_names=CLASSES,
    )


class Faulty(Sampler):
    """A real sampler whose results can be changed one by one, and whose calls are counted."""

    def __init__(
        self, pipeline: Any, generate: Any, change: Change | None = None, fast: FastSpec | None = None
    ) -> None:
        super().__init__(pipeline, generate, fast)
        self.change = change
        self.batches: list[list[int]] = []
        self.before: Callable[[], None] = lambda: None

    def begin(self, requests: Sequence[Request]) -> list[Callable[[], Drawn]]:
        self.before()
        self.batches.append([request.seed for request in requests])
        return [partial(self._changed, *pair) for pair in zip(requests, super().begin(requests), strict=True)]

    def _changed(self, request: Request, row: Callable[[], Drawn]) -> Drawn:
        return row() if self.change is None else self.change(request, row())


def make_worker(
    folder: Path,
    checkpoint: Path,
    generate: dict[str, Any] | None = None,
    *,
    change: Change | None = None,
    batch_size: int = 8,
    fast: FastSpec | None = None,
    scorer: Any = None,
    real_pixels: Any = None,
    progress: Any = None,
) -> ShardWorker:
    spec = digits_spec(
        checkpoint,
        {"count": 50, "shard_size": 20, "num_inference_steps": 2, **(generate or {})},
        resources={"device": "cpu", "batch_size": batch_size},
    )
    conditions = make_conditions()
    pipeline = checkpoints.load(checkpoints.inspect(spec.model, 8), "cpu", "float32")
    return ShardWorker(
        spec,
        open_store(str(folder)),
        Plan(spec, conditions.labels, conditions.class_names),
        Requests(spec, conditions, real_pixels, scorer),
        Faulty(pipeline, spec.generate, change, fast),
        batch_size=batch_size,
        plan_facts=facts_of(spec),
        provenance={"engine": "test", "guidance_scale": spec.generate.guidance_scale},
        progress=progress,
    )


def facts_of(spec: RunSpec) -> PlanFacts:
    return PlanFacts(spec.name, spec.generate.count, spec.generate.shard_size, spec_hash(spec))


def sampler_of(worker: ShardWorker) -> Faulty:
    assert isinstance(worker.sampler, Faulty)
    return worker.sampler


def members(folder: Path, k: int) -> dict[str, dict[str, bytes]]:
    """A shard as Python's own tarfile reads it: key -> extension -> bytes."""
    out: dict[str, dict[str, bytes]] = {}
    with tarfile.open(folder / f"data/digits-{k:06d}.tar") as tar:
        for member in tar:
            if member.isfile():
                key, _, extension = member.name.partition(".")
                out.setdefault(key, {})[extension] = tar.extractfile(member).read()
    return out


def pixels_of(files: dict[str, bytes]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(files["png"])).convert("RGB")).astype(int)


def test_a_shard_holds_what_was_planned(tmp_path: Path, checkpoint: Path) -> None:
    worker = make_worker(tmp_path, checkpoint, {"visual_token": "class"})
    record = worker.make(1)
    conditions, rows = worker.requests.conditions, worker.plan.rows(20, 40)
    shard = members(tmp_path, 1)
    assert list(shard) == [f"digits-{i:012d}" for i in range(20, 40)]
    for position, (key, files) in enumerate(shard.items()):
        anchor, token = int(rows.anchor[position]), int(rows.token_row[position])
        meta = json.loads(files["json"])
        assert meta == {
            "anchor": conditions.keys[anchor],
            "attempt": 1,
            "class": conditions.class_names[conditions.labels[anchor]],
            "clip_score": None,
            "engine": "test",
            "guidance_scale": 2.0,
            "index": 20 + position,
            "init": None,
            "key": key,
            "label": int(conditions.labels[anchor]),
            "pairing": "none",
            "prompt": conditions.prompts[anchor],
            "seed": int(rows.seed[position]),
            "strength": 1.0,
            "token": conditions.keys[token],
            "visual_token": "class",
        }
        assert files["cls"] == str(meta["label"]).encode()
        assert files["txt"].decode() == meta["prompt"]
        assert pixels_of(files).shape == (8, 8, 3)
    assert (record.count, record.planned, record.first, record.quarantined) == (20, 20, 20, ())
    assert record.plan_digest == worker.plan.digest(20, 40, conditions.keys, conditions.prompts)


def test_pictures_are_those_of_the_sampler(tmp_path: Path, checkpoint: Path) -> None:
    worker = make_worker(tmp_path, checkpoint)
    worker.make(2)
    conditions, rows = worker.requests.conditions, worker.plan.rows(40, 50)
    asked = [
        Request(conditions.prompts[a], int(seed), conditions.features[a])
        for a, seed in zip(rows.anchor.tolist(), rows.seed, strict=True)
    ]
    fresh = make_worker(tmp_path / "other", checkpoint).sampler
    expected = [image.pixels for part in (asked[:8], asked[8:]) for image in fresh.draw(part)]
    for files, pixels in zip(members(tmp_path, 2).values(), expected, strict=True):
        np.testing.assert_array_equal(pixels_of(files), pixels)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batch_size_changes_pixels_by_rounding_only(tmp_path: Path, checkpoint: Path, batch_size: int) -> None:
    fail_first = change_for(lambda worker: worker.plan.seeds(np.array([3, 17])).tolist(), "non_finite_latents")
    workers = [make_worker(tmp_path / str(size), checkpoint, batch_size=size) for size in (20, batch_size)]
    made = []
    for worker in workers:
        sampler_of(worker).change = fail_first(worker)
        made.append(worker.make(0))
    assert made[0].plan_digest == made[1].plan_digest
    assert made[0].count == made[1].count == 20
    one, other = (members(tmp_path / str(size), 0) for size in (20, batch_size))
    for key in one:
        assert {k: v for k, v in one[key].items() if k != "png"} == {k: v for k, v in other[key].items() if k != "png"}
        assert np.abs(pixels_of(one[key]) - pixels_of(other[key])).max() <= 2


def test_fast_switches_and_copies_beside_change_pixels_by_rounding_only(tmp_path: Path, checkpoint: Path) -> None:
    fast = FastSpec(channels_last="on", fuse_qkv=True, attention="math", decode_batch=3)
    workers = make_worker(tmp_path / "a", checkpoint), make_worker(tmp_path / "b", checkpoint, fast=fast)
    fail_first = change_for(lambda worker: worker.plan.seeds(np.array([3, 17])).tolist(), "non_finite_latents")
    for worker in workers:
        sampler_of(worker).change = fail_first(worker)
    sampler_of(workers[1])._ahead = True  # as on CUDA, where the next batch is begun before one is handed over
    one, other = (worker.make(0) for worker in workers)
    assert (one.plan_digest, one.count, one.quarantined) == (other.plan_digest, other.count, other.quarantined)
    a, b = (members(tmp_path / name, 0) for name in "ab")
    assert list(a) == list(b)
    for key in a:
        assert {k: v for k, v in a[key].items() if k != "png"} == {k: v for k, v in b[key].items() if k != "png"}
        assert np.abs(pixels_of(a[key]) - pixels_of(b[key])).max() <= 2


def test_equal_batches_give_equal_bytes(tmp_path: Path, checkpoint: Path) -> None:
    first, second = (make_worker(tmp_path / name, checkpoint) for name in "ab")
    second.make(2)  # another history
    assert first.make(0).sha256 == second.make(0).sha256


def change_for(seeds: Callable[[ShardWorker], list[int]], reason: str) -> Callable[[ShardWorker], Change]:
    """A change that fails the requests with these seeds."""

    def bind(worker: ShardWorker) -> Change:
        bad = set(seeds(worker))
        return lambda request, image: Drawn(None, reason) if request.seed in bad else image

    return bind


def test_failures_are_drawn_again_after_the_shard_with_the_next_seed(tmp_path: Path, checkpoint: Path) -> None:
    worker = make_worker(tmp_path, checkpoint)
    bad = np.array([2, 5, 11, 19])
    sampler_of(worker).change = change_for(lambda w: w.plan.seeds(bad).tolist(), "non_finite_pixels")(worker)
    record = worker.make(0)
    first = worker.plan.seeds(np.arange(20)).tolist()
    assert sampler_of(worker).batches == [first[:8], first[8:16], first[16:], worker.plan.seeds(bad, 2).tolist()]
    assert record.count == 20
    for key, files in members(tmp_path, 0).items():
        index, meta = int(key.rpartition("-")[2]), json.loads(files["json"])
        attempt = 2 if index in bad else 1
        assert meta["attempt"] == attempt
        assert meta["seed"] == int(worker.plan.seeds(np.array([index]), attempt)[0])


def test_what_fails_every_attempt_is_quarantined_with_its_last_reason(tmp_path: Path, checkpoint: Path) -> None:
    worker = make_worker(tmp_path, checkpoint, {"gate": {"max_attempts": 3}})
    seeds = {int(worker.plan.seeds(np.array([7]), a)[0]): a for a in (1, 2, 3)}
    reasons = {1: "non_finite_latents", 2: "non_finite_latents", 3: "error: ValueError: no"}
    sampler_of(worker).change = lambda request, image: (
        Drawn(None, reasons[seeds[request.seed]]) if request.seed in seeds else image
    )
    record = worker.make(0)
    label = int(worker.plan.rows(7, 8).label[0])
    assert [entry.to_json() for entry in record.quarantined] == [
        {"index": 7, "label": label, "reason": "error: ValueError: no", "attempts": 3}
    ]
    assert record.count == 19
    assert "digits-000000000007" not in members(tmp_path, 0)
    assert len(sampler_of(worker).batches) == 5


def test_a_record_tells_what_its_shard_cost(tmp_path: Path, checkpoint: Path) -> None:
    worker = make_worker(tmp_path, checkpoint)
    bad = np.array([2, 5, 11, 19])
    sampler_of(worker).change = change_for(lambda w: w.plan.seeds(bad).tolist(), "non_finite_pixels")(worker)
    worker.meter = Meter(worker.spec.resources.model_copy(update={"threads": 3}), "cpu", worker.store)
    began = time.monotonic()
    shard = worker.prepare(0)
    worker.draw(shard)
    drawn = time.monotonic() - began
    time.sleep(0.2)
    record = worker.publish(shard)
    assert (record.count, record.drawn) == (20, 24)
    assert drawn + 0.2 <= record.seconds <= time.monotonic() - began + 0.001
    assert 3 * (drawn - 0.05) < record.device_seconds <= 3 * drawn + 0.002, "publishing may run beside another drawing"
    assert (record.device_name, record.joules) == (cpu_name(), None)
    assert cost.usages(worker.store)[0].booked_seconds == record.device_seconds
    given_up = worker.publish(worker.give_up(2, "worker_died", 5))
    assert given_up.drawn == 0
    assert cost.gather(worker.store, worker.plan_facts).accepted == 20
    worker.meter.close()


def test_work_on_a_shard_that_another_worker_published_first_is_no_record_s(tmp_path: Path, checkpoint: Path) -> None:
    winner, loser = make_worker(tmp_path, checkpoint), make_worker(tmp_path, checkpoint)
    loser.meter = Meter(loser.spec.resources, "cpu", loser.store)
    sampler_of(loser).before = lambda: winner.make(0) and None
    record = loser.make(0)
    loser.meter.close()
    (usage,) = cost.usages(loser.store)
    assert usage.booked_seconds == 0
    assert usage.device_seconds > record.seconds


def test_constant_pictures_do_not_pass(tmp_path: Path, checkpoint: Path) -> None:
    worker = make_worker(tmp_path, checkpoint)
    black = Drawn(np.zeros((8, 8, 3), np.uint8))
    bad = {int(worker.plan.seeds(np.array([4]), attempt)[0]) for attempt in (1, 2, 3)}
    sampler_of(worker).change = lambda request, image: black if request.seed in bad else image
    assert [(e.index, e.reason) for e in worker.make(0).quarantined] == [(4, "constant_image")]


def test_nothing_passing_stops_after_a_hundred_samples(tmp_path: Path, checkpoint: Path) -> None:
    worker = make_worker(
        tmp_path, checkpoint, {"count": 500, "shard_size": 500}, change=lambda *_: Drawn(None, "non_finite_latents")
    )
    with pytest.raises(
        DataError, match=r"none of the first 104 samples passed; most often non_finite_latents \(104\); set model.dtype"
    ):
        worker.make(0)
    assert not list(tmp_path.glob("data/*"))


def test_a_published_shard_is_never_drawn_again(tmp_path: Path, checkpoint: Path) -> None:
    worker = make_worker(tmp_path, checkpoint)
    record = worker.make(0)
    drawn = len(sampler_of(worker).batches)
    tar = tmp_path / "data/digits-000000.tar"
    before = (tar.stat().st_mtime_ns, tar.stat().st_ino)
    assert worker.make(0) == record
    assert len(sampler_of(worker).batches) == drawn
    assert (tar.stat().st_mtime_ns, tar.stat().st_ino) == before


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_lost_or_cut_record_comes_back_from_the_tar(tmp_path: Path, checkpoint: Path, damage: str) -> None:
    worker = make_worker(tmp_path, checkpoint)
    seeds = {int(worker.plan.seeds(np.array([7]), attempt)[0]) for attempt in (1, 2, 3)}
    sampler_of(worker).change = lambda request, image: Drawn(None, "x") if request.seed in seeds else image
    record = worker.make(0)
    path = tmp_path / "data/digits-000000.json"
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    assert worker.make(0).identity() == record.identity()
    stored = records.load(worker.store, "digits-000000")
    assert stored is not None
    assert stored.identity() == record.identity()


def test_the_loser_of_a_race_records_the_winner(tmp_path: Path, checkpoint: Path) -> None:
    """Two workers whose bytes differ (other batch sizes and a sample that only the loser loses) work on one shard."""
    winner = make_worker(tmp_path, checkpoint, batch_size=5)
    loser = make_worker(tmp_path, checkpoint)
    seeds = {int(loser.plan.seeds(np.array([0]), attempt)[0]) for attempt in (1, 2, 3)}
    sampler_of(loser).change = lambda request, image: Drawn(None, "x") if request.seed in seeds else image
    sampler_of(loser).before = lambda: (
        None if (tmp_path / "data/digits-000000.tar").exists() else winner.make(0) and None
    )
    record = loser.make(0)
    assert record.quarantined == ()
    assert record.batch_size == 5
    assert records.load(loser.store, "digits-000000") == record


def test_giving_up_quarantines_every_sample(tmp_path: Path, checkpoint: Path) -> None:
    worker = make_worker(tmp_path, checkpoint)
    record = worker.publish(worker.give_up(2, "worker_died", 5))
    assert record.count == 0
    assert [(e.index, e.reason, e.attempts) for e in record.quarantined] == [
        (i, "worker_died", 5) for i in range(40, 50)
    ]
    assert members(tmp_path, 2) == {}
    assert not sampler_of(worker).batches


def test_encoding_runs_beside_the_drawing_of_the_next_batch(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = make_worker(tmp_path, checkpoint)
    second_draw = threading.Event()
    waited: list[bool] = []

    def slow_encode(*arguments: Any) -> bytes:
        if not waited:
            waited.append(second_draw.wait(timeout=60))
        return real_encode(*arguments)

    real_encode = worker_module.encode
    monkeypatch.setattr(worker_module, "encode", slow_encode)
    sampler_of(worker).before = lambda: second_draw.set() if sampler_of(worker).batches else None
    worker.make(0)
    assert waited == [True]


def test_a_picture_that_cannot_be_encoded_is_drawn_again(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real_encode = worker_module.encode

    def fail_once(*arguments: Any) -> bytes:
        calls.append(1)
        if len(calls) == 6:
            raise OSError("encoder error")
        return real_encode(*arguments)

    monkeypatch.setattr(worker_module, "encode", fail_once)
    assert make_worker(tmp_path, checkpoint).make(0).count == 20
    attempts = [json.loads(files["json"])["attempt"] for files in members(tmp_path, 0).values()]
    assert [n for n, attempt in enumerate(attempts) if attempt == 2] == [5]


def test_a_set_that_cannot_be_encoded_is_stopped_after_a_hundred_samples(tmp_path: Path, checkpoint: Path) -> None:
    odd = np.random.default_rng(0).integers(
        0, 256, (8, 8, 5), dtype=np.uint8
    )  # five channels pass the gate, no encoder
    seen: list[int] = []
    worker = make_worker(
        tmp_path,
        checkpoint,
        {"count": 500, "shard_size": 500},
        change=lambda *_: Drawn(odd),
        progress=lambda k, passed: seen.append(passed),
    )
    with pytest.raises(DataError, match=r"none of the first 104 samples passed; most often error: .* \(104\)"):
        worker.make(0)
    assert set(seen) == {0}
    assert len(sampler_of(worker).batches) <= 15  # 13 batches, and those drawn beside the encoding
    assert not list(tmp_path.glob("data/*"))


def test_what_fails_to_encode_is_no_reason_to_stop_where_others_pass(tmp_path: Path, checkpoint: Path) -> None:
    odd, black = np.zeros((8, 8, 5), np.uint8), Drawn(np.zeros((8, 8, 3), np.uint8))
    odd[:4] = 200
    worker = make_worker(tmp_path, checkpoint, {"count": 120, "shard_size": 120, "gate": {"max_attempts": 1}})
    seeds = worker.plan.seeds(np.arange(120)).tolist()
    good = set(seeds[100:102])  # in the batch in which the hundredth sample is drawn
    sampler_of(worker).change = lambda request, image: (
        image if request.seed in good else Drawn(odd) if request.seed % 2 else black
    )
    record = worker.make(0)
    assert (record.count, record.drawn, len(record.quarantined)) == (2, 120, 118)
    reasons = {entry.index: entry.reason for entry in record.quarantined}
    assert all(reasons[i].startswith("error: ") == bool(seeds[i] % 2) for i in reasons)


def test_latents_start_from_the_planned_real_images(tmp_path: Path, checkpoint: Path) -> None:
    real = np.random.default_rng(1).integers(0, 256, (N, 8, 8, 3)).astype(np.uint8)
    generate = {"strength": 0.5, "pairing": "class", "num_inference_steps": 4}
    worker = make_worker(tmp_path, checkpoint, generate, real_pixels=lambda rows: real[rows])
    worker.make(2)
    rows, conditions = worker.plan.rows(40, 50), worker.requests.conditions
    fresh = make_worker(tmp_path / "other", checkpoint, generate).sampler
    expected: list[Any] = []
    for part in (slice(0, 8), slice(8, 10)):
        latents = fresh.encode_latents(real[rows.init_row[part]])
        asked = [
            Request(conditions.prompts[a], int(seed), conditions.features[a], latent)
            for a, seed, latent in zip(rows.anchor[part].tolist(), rows.seed[part], latents, strict=True)
        ]
        expected += [image.pixels for image in fresh.draw(asked)]
    shard = members(tmp_path, 2)
    for position, (files, pixels) in enumerate(zip(shard.values(), expected, strict=True)):
        np.testing.assert_array_equal(pixels_of(files), pixels)
        assert json.loads(files["json"])["init"] == conditions.keys[rows.init_row[position]]


def test_clip_scores_are_those_of_the_checkpoints_clip(tmp_path: Path, checkpoint: Path) -> None:
    import torch
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    from engine.conditions import featuremodel
    from engine.conditions.features import FeatureExtractor

    spec = digits_spec(checkpoint)
    scorer = FeatureExtractor(featuremodel.resolve(spec.conditions.features, checkpoint))
    worker = make_worker(tmp_path, checkpoint, {"gate": {"min_clip_score": -1}}, scorer=scorer)
    worker.make(2)
    model = CLIPModel.from_pretrained(checkpoint / "clip").eval()
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    processor = CLIPImageProcessor.from_pretrained(checkpoint / "feature_extractor")
    for files in members(tmp_path, 2).values():
        meta = json.loads(files["json"])
        inputs = tokenizer([meta["prompt"]], padding="max_length", max_length=16, truncation=True, return_tensors="pt")
        inputs["pixel_values"] = processor(images=[pixels_of(files).astype(np.uint8)], return_tensors="pt")[
            "pixel_values"
        ]
        with torch.inference_mode():
            out = model(**inputs)
        expected = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
        assert meta["clip_score"] == pytest.approx(float(expected), abs=2e-5)


def test_a_clip_threshold_draws_again_and_keeps_the_rest(tmp_path: Path, checkpoint: Path) -> None:
    class Scorer:
        """Features whose cosine is the picture's red share: a score that can be foreseen."""

        def images(self, pixels: np.ndarray) -> np.ndarray:
            red = pixels[:, 0, 0, 0] / 255
            return np.stack([red, np.sqrt(1 - red**2)], 1).astype(np.float32)

        def texts(self, texts: list[str]) -> np.ndarray:
            return np.tile(np.array([1, 0], np.float32), (len(texts), 1))

    worker = make_worker(tmp_path, checkpoint, {"gate": {"min_clip_score": 0.4, "max_attempts": 2}}, scorer=Scorer())
    record = worker.make(0)
    kept = {int(key.rpartition("-")[2]): files for key, files in members(tmp_path, 0).items()}
    assert {entry.reason for entry in record.quarantined} <= {"low_clip_score"}
    assert len(kept) + len(record.quarantined) == 20
    redrawn = [files for files in kept.values() if json.loads(files["json"])["attempt"] == 2]
    assert redrawn or record.quarantined
    for files in kept.values():
        score = json.loads(files["json"])["clip_score"]
        assert score == pytest.approx(pixels_of(files)[0, 0, 0] / 255, abs=1e-6)
        assert score >= 0.4


def test_progress_counts_what_passed(tmp_path: Path, checkpoint: Path) -> None:
    seen: list[tuple[int, int]] = []
    worker = make_worker(tmp_path, checkpoint, progress=lambda k, passed: seen.append((k, passed)))
    worker.make(0)
    assert seen == [(0, 8), (0, 16), (0, 20)]
