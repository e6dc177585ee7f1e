"""Conditions read back, class statistics and Gaussian draws against numpy over many draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine.conditions import stored, tokens
from engine.conditions.stored import CAPTIONS, CLASSES, FEATURES, FITS
from engine.conditions.table import Conditions, class_statistics, load, load_captions, publish_fits, unit
from engine.errors import DataError
from engine.spec import RunSpec, validate
from engine.storage.store import Store, open_store

NAMES = ("cat", "sea_lion", "empty", "lone")
LABELS = np.array([0, 1, 0, 1, 1, 3, 0, 1, 0], np.int32)
SPEC = RunSpec.model_validate(
    {"name": "x", "source": {"kind": "digits"}, "generate": {"visual_token": "class_gaussian"}}
)


def features(width: int = 5) -> np.ndarray:
    return np.random.default_rng(4).normal(2, 3, (len(LABELS), width)).astype(np.float32)


def captions_table() -> pa.Table:
    names = [f"k{i}" for i in range(len(LABELS))]
    return pa.table({"key": names, "label": LABELS, "caption": [f"c{i}" if i else "" for i in range(len(LABELS))]})


def write(store: Store, values: np.ndarray, keys: list[str] | None = None, captions: pa.Table | None = None) -> None:
    names = [f"k{i}" for i in range(len(LABELS))]
    table = captions_table() if captions is None else captions
    stored.publish(store, CAPTIONS, table, {}, fitted={"a": 1}, class_names=list(NAMES))
    stored.publish(store, FEATURES, pa.table({"key": keys or names, "feature": stored.as_lists(values)}), {})
    publish_fits(store, SPEC, values, LABELS, {})
    stored.publish(store, CLASSES, class_statistics(values, LABELS, NAMES), {})


@pytest.fixture
def conditions(tmp_path: Path) -> Conditions:
    store = open_store(str(tmp_path))
    write(store, features())
    return load(store, SPEC)


def test_all_is_read_back(conditions: Conditions) -> None:
    np.testing.assert_array_equal(conditions.features, features())
    np.testing.assert_array_equal(conditions.labels, LABELS)
    assert conditions.keys[:2] == ("k0", "k1")
    assert conditions.prompts[:2] == ("photo of cat", "photo of sea lion, c1")
    assert conditions.class_names == NAMES
    assert conditions.features.dtype == conditions.class_means.dtype == np.float32
    assert conditions.labels.dtype == np.int32


def test_captions_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write(store, features())
    captions = load_captions(store)
    assert captions.fitted == {"a": 1}
    assert captions.captions[:2] == ("", "c1")
    assert captions.prompts("{class}")[:2] == ("cat", "sea lion")


def test_features_of_width_zero(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write(store, features(0))
    conditions = load(store, SPEC)
    assert conditions.features.shape == (len(LABELS), 0)
    assert conditions.class_means.shape == (len(NAMES), 0)


def test_class_statistics_are_numpys() -> None:
    values = features()
    table = class_statistics(values, LABELS, NAMES).to_pylist()
    assert [row["count"] for row in table] == [4, 4, 0, 1]
    assert [row["name"] for row in table] == list(NAMES)
    np.testing.assert_allclose(table[1]["mean"], values[LABELS == 1].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(table[1]["std"], values[LABELS == 1].std(axis=0, ddof=1), rtol=1e-5)
    assert table[2]["mean"] is None
    assert table[2]["std"] is None
    assert table[3]["std"] == [0.0] * 5


def test_normalised_features_have_length_one_and_so_do_those_behind_the_means(tmp_path: Path) -> None:
    store, values = open_store(str(tmp_path)), features()
    values[4] = 0
    write(store, values)
    before = store.read(FEATURES)
    plain = load(store, SPEC)
    spec = validate({**SPEC.model_dump(mode="json"), "conditions": {"features": {"normalise": True}}})
    made = load(store, spec)
    expected = np.stack([v / np.sqrt((v.astype(float) ** 2).sum()) if v.any() else v for v in values])
    np.testing.assert_allclose(made.features, expected, rtol=1e-6)
    assert not made.features[4].any()
    for label in (0, 1, 3):
        np.testing.assert_allclose(made.class_mean(label), expected[label == LABELS].mean(axis=0), rtol=1e-5)
    with pytest.raises(DataError, match="empty: has no training image"):
        made.class_mean(2)
    assert made.digest() != plain.digest()
    assert store.read(FEATURES) == before
    np.testing.assert_array_equal(plain.features, values)


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        (captions_table().slice(0, 8), "belongs to other images or classes than .* \\(9 and 8 images\\)"),
        (captions_table().slice(0, 0), "has no key for 0 of 0 images"),
        (captions_table().drop_columns("caption"), "has no caption for 9 of 9 images"),
        (
            captions_table().set_column(2, "caption", pa.array(["a", None, "b", None, *"cdefg"])),
            "has no caption for 2 of 9 images",
        ),
    ],
)
def test_missing_captions_are_one_line(tmp_path: Path, captions: pa.Table, says: str) -> None:
    store = open_store(str(tmp_path))
    write(store, features(), captions=captions)
    with pytest.raises(DataError, match=says) as caught:
        load(store, SPEC)
    assert "\n" not in str(caught.value)
    assert "remove conditions/ and run again" in str(caught.value)


def test_class_mean(conditions: Conditions) -> None:
    np.testing.assert_allclose(conditions.class_mean(0), features()[LABELS == 0].mean(axis=0), rtol=1e-5)
    with pytest.raises(DataError, match="empty: has no training image"):
        conditions.class_mean(2)


def test_gaussian_draws_follow_the_seed(conditions: Conditions) -> None:
    one = conditions.class_gaussian(0, 2**63 - 1)
    assert one.dtype == np.float32
    np.testing.assert_array_equal(one, conditions.class_gaussian(0, 2**63 - 1))
    assert (one != conditions.class_gaussian(0, 1)).any()


def test_a_class_of_one_image_has_the_spread_of_the_others(conditions: Conditions) -> None:
    draws = np.stack([conditions.class_gaussian(3, seed) for seed in range(4000)]).astype(np.float64)
    residuals = np.concatenate([features()[k == LABELS] - features()[k == LABELS].mean(axis=0) for k in (0, 1)])
    expected = np.sqrt((residuals.astype(np.float64) ** 2).sum(axis=0) / (len(residuals) - 2))
    np.testing.assert_allclose(draws.std(axis=0), expected, rtol=0.06)
    np.testing.assert_allclose(draws.mean(axis=0), features()[5], atol=5 * expected.max() / np.sqrt(4000))
    with pytest.raises(DataError, match="has no training image"):
        conditions.class_gaussian(2, 7)


def test_draws_use_what_is_stored(conditions: Conditions) -> None:
    own, fits = features()[LABELS == 1], tokens.fit(features(), LABELS, len(NAMES))
    assert conditions.fits is not None
    np.testing.assert_array_equal(conditions.fits.root, fits.root)
    np.testing.assert_array_equal(conditions.class_gaussian(1, 5), tokens.gaussian(own, fits, 1, 5))
    np.testing.assert_array_equal(conditions.prior(3, 5), tokens.around(own, features()[3], fits, 1, 5))
    np.testing.assert_array_equal(conditions.between(3, 4, 5), tokens.between(features()[3], features()[4], 5))
    assert replace(conditions, fits=replace(fits, bandwidth=0.05)).digest() != conditions.digest()
    assert replace(conditions, fits=replace(fits, root=fits.root + 1)).digest() != conditions.digest()


def test_normalised_features_are_fitted_normalised(tmp_path: Path) -> None:
    spec = validate({**SPEC.model_dump(mode="json"), "conditions": {"features": {"normalise": True}}})
    store = open_store(str(tmp_path))
    publish_fits(store, spec, features(), LABELS, {})
    made = stored.as_matrix(stored.read(store, FITS)[0]["root"])
    np.testing.assert_array_equal(made, tokens.fit(unit(features()), LABELS, len(NAMES)).root)


def test_without_fits_there_is_one_line(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write(store, features())
    store.remove(FITS)
    with pytest.raises(DataError, match=r"fits.parquet: is absent; remove conditions/"):
        load(store, SPEC).prior(0, 1)


def test_a_token_that_needs_no_fit_has_the_conditions_of_before(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write(store, features())
    own = RunSpec.model_validate({"name": "x", "source": {"kind": "digits"}})
    made = load(store, own)
    assert made.fits is None
    assert made.digest() == replace(load(store, SPEC), fits=None).digest()


def test_files_of_different_images_are_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write(store, features(), keys=[f"other{i}" for i in range(len(LABELS))])
    with pytest.raises(DataError, match="belongs to other images"):
        load(store, SPEC)


def test_absent_and_broken_files(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(DataError, match=r"captions.parquet: is absent; run `mimeo condition`"):
        load(store, SPEC)
    write(store, features())
    data = store.read(FEATURES)
    store.replace(FEATURES, data[: len(data) // 2])
    with pytest.raises(DataError, match=r"features.parquet: cannot be read"):
        load(store, SPEC)
