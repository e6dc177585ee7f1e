"""Copy shares against their exact null, a simulation of their intervals, and planted sets: photocopies, and real
images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from engine.evaluation.copies import ALPHA, Share, copy_share, measure, membership, pairs, verdict
from engine.evaluation.nearest import Crossed, PixelSpace

GREY = PixelSpace(grey=True)


def digits() -> np.ndarray:
    """All digits of scikit-learn as (1797, 8, 8, 3) uint8."""
    grey = (load_digits().images / 16 * 255).round().astype(np.uint8)
    return grey[..., None].repeat(3, axis=3)


def test_the_share_is_a_count_below_the_order_statistic() -> None:
    held = np.arange(1, 200.0)  # 199: the second smallest is the 1 % quantile
    found = copy_share(np.array([0.5, 1.5, 2.0, 2.5, 50.0]), held)
    assert (found.threshold, found.copies, found.share) == (2.0, 2, 0.4)
    assert found.null == pytest.approx(0.01)
    assert found.interval[0] < 0.4 < found.interval[1]
    none = copy_share(np.full(50, 300.0), held)
    assert none.interval[0] == none.share == 0.0
    assert 0 < none.interval[1] < 0.1
    assert (none.p, none.called) == (1.0, False)


def test_few_held_out_images_say_what_their_null_is() -> None:
    found = copy_share(np.array([0.5, 5.0]), np.arange(1.0, 50.0))
    assert (found.threshold, found.null) == (1.0, 1 / 50)


def test_the_null_is_exact_whatever_the_distribution() -> None:
    """Real images posing as synthetic: about 1 %, inside the stated interval in 95 %, and called in at most 1 %."""
    rng = np.random.default_rng(0)
    found = [copy_share(rng.gamma(2, 10, 1000), rng.gamma(2, 10, 899)) for _ in range(1000)]
    assert np.mean([share.share for share in found]) == pytest.approx(0.01, abs=0.0008)
    inside = np.mean([share.null_interval[0] <= share.share <= share.null_interval[1] for share in found])
    assert 0.94 <= inside <= 0.975
    assert np.mean([share.called for share in found]) <= stats.binom(1000, ALPHA).ppf(0.999) / 1000


@pytest.mark.parametrize(("shift", "n", "m"), [(4.0, 1000, 899), (10.0, 300, 300), (0.0, 1000, 2000)])
def test_intervals_hold_the_true_share(shift: float, n: int, m: int) -> None:
    """Synthetic distances nearer by `shift`: the share below the true 1 % quantile lies inside in about 95 %."""
    rng = np.random.default_rng(1)
    k = max(1, round(0.01 * (m + 1)))
    true = stats.norm(40 - shift, 6).cdf(stats.norm(40, 6).ppf(k / (m + 1)))
    hits = 0
    for _ in range(400):
        low, high = copy_share(rng.normal(40 - shift, 6, n), rng.normal(40, 6, m)).interval
        hits += low <= true <= high
    assert 0.91 <= hits / 400 <= 0.99


def test_membership_is_the_area_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    members, others = rng.normal(20, 5, 100), rng.normal(25, 5, 300)
    found = membership(members, others)
    truth = np.repeat([1, 0], [100, 300])
    assert found["auc"] == pytest.approx(roc_auc_score(truth, -np.concatenate([members, others])))
    assert found["auc_interval"][0] < found["auc"] < found["auc_interval"][1]
    assert membership(np.zeros(5), np.ones(5)) == {"auc": 1.0, "auc_interval": [None, None]}


def test_photocopies_are_called_photocopies_in_20_of_20_draws() -> None:
    """100 digits, each four times, with noise of about the quickstart's distance; a mirror image and a shift hide
    nothing."""
    images = digits()
    called = []
    for draw in range(20):
        rng = np.random.default_rng(draw)
        order = rng.permutation(len(images))
        train, held = images[order[:100]], images[order[100:]]
        noise = rng.normal(0, 17.5, (400, 8, 8, 1))
        made = np.clip(np.tile(train, (4, 1, 1, 1)) + noise, 0, 255).round().astype(np.uint8)
        if draw % 2:
            made = np.roll(made[:, :, ::-1], 1, axis=1)
        found = measure(GREY, made, train, held, (100, 400))
        called.append(verdict([copy_share(found.made.distance, found.held_out)]))
        assert found.prefix(1, 400)["share"] > 0.3
        assert found.prefix(1, 400)["auc"] > 0.9
    assert called == ["copies"] * 20


def test_real_images_posing_as_synthetic_have_the_null_share() -> None:
    images = digits()
    shares: list[Share] = []
    aucs = []
    for draw in range(20):
        order = np.random.default_rng(draw).permutation(len(images))
        train, posing, held = images[order[:100]], images[order[100:900]], images[order[900:]]
        found = measure(GREY, posing, train, held, (800,))
        shares.append(copy_share(found.made.distance, found.held_out))
        aucs.append(found.prefix(0, 800)["auc"])
    assert np.mean([share.share for share in shares]) == pytest.approx(0.01, abs=0.004)
    assert [verdict([share]) for share in shares].count("copies") <= 1
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.03)


def test_pairs_show_each_training_image_once_and_the_middle() -> None:
    distance = np.arange(40, 0, -1.0)
    found = pairs(Crossed(distance, np.repeat(np.arange(20), 2), np.empty((0, 20))))
    nearest = [pair for pair in found if pair["which"] == "nearest"]
    assert [(pair["synthetic"], pair["training"], pair["distance"]) for pair in nearest] == [
        (39 - 2 * k, 19 - k, 1.0 + 2 * k) for k in range(6)
    ]
    assert [pair["distance"] for pair in found if pair["which"] == "middle"] == [18, 19, 20, 21, 22, 23]
