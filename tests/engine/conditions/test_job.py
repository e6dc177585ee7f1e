"""The condition stages on real digits through Ray, against the same work done plainly."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from engine.cluster.progress import PlainReporter, Reporter, Task
from engine.conditions import conditions_job, featuremodel, stored, tokens
from engine.conditions.captionmodel import CaptionModel
from engine.conditions.captions import fit_terciles, moments
from engine.conditions.features import FeatureExtractor
from engine.conditions.stored import CAPTIONS
from engine.conditions.table import load, load_captions
from engine.errors import ConfigError, DataError, StorageError
from engine.images import catalog as catalogs
from engine.images.catalog import Catalog
from engine.images.image_reader import Reader
from engine.spec import RunSpec, validate
from engine.storage.store import Store, open_store
from tests.support import captioners, clips
from tests.support.captions import said_of

QUIET = PlainReporter()


def run_spec(caption: dict[str, object], **resources: object) -> RunSpec:
    data = {
        "name": "digits",
        "source": {"kind": "digits"},
        "pretrain": {"space": "latent"},
        "images": {"size": 8},
        "split": {"train": 300, "test": 0.2},
        "conditions": {"caption": caption},
        "resources": {"device": "cpu", **resources},
    }
    return RunSpec.model_validate(data)


SPEC = run_spec({"kind": "moments"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    clips.write_clip(folder / "clip", size=8)
    return folder


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Catalog:
    return catalogs.build(SPEC, open_store(str(tmp_path_factory.mktemp("catalog"))), QUIET)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


class Counting(Reporter):
    """Counts the tasks that were opened: work that was done."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def task(self, name: str, total: int, unit: str = "images") -> Task:
        self.names.append(name)
        return QUIET.task(name, total, unit)

    def note(self, text: str) -> None:
        QUIET.note(text)


def test_captions_are_those_of_plain_code(catalog: Catalog, store: Store) -> None:
    conditions_job.caption(SPEC, catalog, store, QUIET)
    train = catalog.split("train")
    pixels = Reader(SPEC).pixels(train)
    expected = said_of(SPEC.conditions.caption, fit_terciles(moments(pixels)), pixels)
    found = load_captions(store)
    assert list(found.captions) == expected
    assert list(found.keys) == train["key"].to_pylist() == sorted(found.keys)
    np.testing.assert_array_equal(found.labels, train["label"].to_numpy())
    assert found.class_names == catalog.class_names
    unseen = Reader(SPEC).pixels(catalog.split("test"))
    assert set(said_of(SPEC.conditions.caption, found.fitted, unseen)) <= set(expected) | {
        "",
        *_all_captions(),
    }


def _all_captions() -> set[str]:
    from engine.conditions.captions import WORDS

    weight, width, slant = WORDS.values()
    return {f"{a} {b} {c}" for a in weight for b in width for c in slant}


def test_class_captions_need_no_ray_and_are_empty(catalog: Catalog, store: Store) -> None:
    reporter = Counting()
    conditions_job.caption(run_spec({"kind": "class"}), catalog, store, reporter)
    assert set(load_captions(store).captions) == {""}
    assert reporter.names == []


@pytest.mark.parametrize(("kind", "write"), [("blip", clips.write_blip), ("model", captioners.write_qwen)])
def test_captions_of_models_come_through_the_pool(
    catalog: Catalog, store: Store, tmp_path: Path, kind: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / "model")
    spec = run_spec({"kind": kind, "path": str(tmp_path / "model"), "max_new_tokens": 3})
    conditions_job.caption(spec, catalog, store, QUIET)
    said = CaptionModel(spec.conditions.caption)(Reader(spec).pixels(catalog.split("train")))
    found = load_captions(store)
    assert list(found.captions) == [fact["caption"] for fact in said]
    assert found.fitted == {"cut": sum(fact["cut"] for fact in said)}


def test_made_from_of_older_captions_stays_the_same(catalog: Catalog, store: Store) -> None:
    """A key that came later is left out at its default, so that captions of older versions are not made again."""
    conditions_job.caption(SPEC, catalog, store, QUIET)
    assert stored.facts(store, CAPTIONS)["made_from"] == {
        "version": 1,
        "captions": {"kind": "moments", "max_new_tokens": 20},
        "images": SPEC.images.model_dump(mode="json"),
        "catalog": catalog.digest,
        "model": hashlib.sha256().hexdigest(),
    }


def test_features_from_first_to_last(catalog: Catalog, store: Store, checkpoint: Path, tmp_path: Path) -> None:
    """As plain code gives them; nothing to do when done; redone for another model, refused once something was
    generated."""
    spec, reporter = run_spec({"kind": "class"}, actors=2), Counting()
    for _ in range(2):
        conditions_job.caption(spec, catalog, store, reporter)
        conditions_job.features(spec, catalog, checkpoint, store, reporter)
    assert reporter.names == ["features"]
    found = load(store, spec)
    extractor = FeatureExtractor(featuremodel.resolve(spec.conditions.features, checkpoint))
    expected = extractor.images(Reader(spec).pixels(catalog.split("train")))
    np.testing.assert_allclose(found.features, expected, rtol=1e-5, atol=1e-6)
    assert found.features.shape == (300, 24)
    for label in range(10):
        own = expected[found.labels == label]
        np.testing.assert_allclose(found.class_mean(label), own.mean(axis=0), rtol=1e-4, atol=1e-5)
    classes = pq.read_table(store.open("conditions/classes.parquet")).to_pylist()
    assert [row["count"] for row in classes] == np.bincount(found.labels, minlength=10).tolist()
    assert found.prompts[0] == f"photo of {found.class_names[found.labels[0]]}"

    store.remove("conditions/classes.parquet")  # stopped between the two files
    conditions_job.features(spec, catalog, checkpoint, store, reporter)
    assert reporter.names == ["features"]
    np.testing.assert_array_equal(load(store, spec).class_means, found.class_means)
    clips.write_clip(tmp_path / "clip", size=8, seed=1)
    conditions_job.features(spec, catalog, tmp_path, store, reporter)
    assert reporter.names == ["features", "features"]
    assert (load(store, spec).features != found.features).any()
    store.create("plan.json", b"{}")
    with pytest.raises(DataError, match="was made from other inputs"):
        conditions_job.features(spec, catalog, checkpoint, store, reporter)


def test_fits_are_stored_where_the_token_is_drawn_from_them_and_made_before_the_stage_counts_as_done(
    catalog: Catalog, store: Store, checkpoint: Path
) -> None:
    data = run_spec({"kind": "class"}, actors=2).model_dump(mode="json")
    spec = validate({**data, "generate": {"visual_token": "prior"}})
    conditions_job.caption(spec, catalog, store, Counting())
    conditions_job.features(spec, catalog, checkpoint, store, Counting())
    names = {entry.name: store.local(entry.name).stat().st_mtime_ns for entry in store.list("conditions/")}  # type: ignore[union-attr]
    assert names["conditions/fits.parquet"] <= names["conditions/classes.parquet"]
    found = load(store, spec)
    expected = tokens.fit(found.features, found.labels, 10)
    assert found.fits is not None
    np.testing.assert_array_equal(found.fits.root, expected.root)
    np.testing.assert_array_equal(found.fits.shrinkage, expected.shrinkage)
    assert found.fits.bandwidth == expected.bandwidth


def test_a_token_that_a_class_cannot_give_is_refused_before_captions(catalog: Catalog, store: Store) -> None:
    train = catalog.split("train")
    one = train.filter(pc.equal(train["label"], 3)).slice(0, 1)
    rest = train.filter(pc.not_equal(train["label"], 3))
    lone = replace(catalog, table=pa.concat_tables([rest, one]).sort_by("key"))
    data = run_spec({"kind": "class"}, actors=2).model_dump(mode="json")
    spec = validate({**data, "generate": {"visual_token": "interpolation"}})
    with pytest.raises(DataError, match=r"has one training image, so generate.visual_token interpolation"):
        conditions_job.caption(spec, lone, store, Counting())
    assert not store.exists("conditions/captions.parquet")


def changed(folder: Path, tensor: str, value: float) -> featuremodel.FeatureModel:
    clips.write_clip(folder / "clip", size=8)
    weights = folder / "clip" / "model.safetensors"
    state = load_file(weights)
    state[tensor][...] = value
    save_file(state, weights, metadata={"format": "pt"})
    return featuremodel.resolve(SPEC.conditions.features, folder)


def test_a_feature_that_is_not_finite_names_its_image(catalog: Catalog, tmp_path: Path) -> None:
    work = conditions_job.feature_work(
        SPEC, changed(tmp_path, "visual_projection.weight", 3e38), "cpu"
    )  # finite, its products are not
    rows = catalog.split("train").slice(5, 3)
    with pytest.raises(DataError, match=r": its image feature is not finite") as caught:
        work(rows)
    assert caught.value.where == rows["key"][0].as_py()


def test_weights_that_are_not_finite_are_refused_before_any_image(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not finite \(logit_scale\)"):
        conditions_job.feature_work(SPEC, changed(tmp_path, "logit_scale", float("inf")), "cpu")


def test_a_model_that_changed_after_the_drivers_check_gives_no_feature(tmp_path: Path) -> None:
    clips.write_clip(tmp_path / "clip", size=8, seed=0)
    digest = featuremodel.resolve(SPEC.conditions.features, tmp_path).digest
    conditions_job.feature_work(SPEC, featuremodel.resolve(SPEC.conditions.features, tmp_path), "cpu", digest)
    clips.write_clip(tmp_path / "clip", size=8, seed=1)
    with pytest.raises(StorageError, match="is not the model that the run began with"):
        conditions_job.feature_work(SPEC, featuremodel.resolve(SPEC.conditions.features, tmp_path), "cpu", digest)


def test_checkpoint_without_encoder_when_no_feature_is_used(catalog: Catalog, store: Store, tmp_path: Path) -> None:
    spec = RunSpec.model_validate({**run_spec({"kind": "class"}).model_dump(), "generate": {"visual_token": "none"}})
    conditions_job.caption(spec, catalog, store, QUIET)
    conditions_job.features(spec, catalog, tmp_path, store, QUIET)
    assert load(store, spec).features.shape == (300, 0)
    with pytest.raises(ConfigError, match="no image_encoder"):
        conditions_job.features(SPEC, catalog, tmp_path, store, QUIET)


def test_precheck(checkpoint: Path, tmp_path: Path) -> None:
    conditions_job.precheck(SPEC)
    conditions_job.precheck(SPEC, checkpoint, [24])
    with pytest.raises(ConfigError, match="24 wide"):
        conditions_job.precheck(SPEC, checkpoint, [768])
    with pytest.raises(ConfigError, match=r"conditions.caption.path: .* is not a directory"):
        conditions_job.precheck(run_spec({"kind": "blip", "path": str(tmp_path / "none")}))
