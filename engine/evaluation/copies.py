"""How much of a synthetic set copies its training images: copy share, membership attack, nearest pairs, and a
verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import stats

from engine.evaluation.evaluationresults import CopyShare, MembershipAuc, Pair, SpaceCopies, Verdict
from engine.evaluation.gap import delong
from engine.evaluation.nearest import Crossed, Floats, Pixels, Space, cross, sample

if TYPE_CHECKING:
    import torch

QUANTILE = 0.01
LEVEL = 0.95
ALPHA = 0.01  # of the verdict, in each of the two spaces
DRAWS = 4000
HELD_OUT = 5000  # real images that the threshold is taken from, at most
ATTACKED = 2000  # of these, non-members of the attack, at most
PAIRS = 6
COVERS = (
    "Copy share: the share of synthetic images that lie nearer to a training image "
    "(smallest over mirror images and shifts by a "
    "pixel) than all but 1 % of held-out real images do. Real images that nobody trained "
    "on have a share of about 1 %. Its interval "
    "holds the sampling of synthetic and held-out images, of one generator. Membership "
    "AUC: whether the distance to the "
    "nearest synthetic image tells training images from held-out ones; 0.5: it does not. Blurred images lie near to "
    "everything and raise the share without being copies: look at the nearest pairs."
)


@dataclass(frozen=True)
class Share:
    """Images nearer to a training image than the `threshold`, the k-th smallest distance of held-out real images.

    `null`: the share that other real images have on average, k / (held-out + 1); `null_interval`: where it lies in 95 %
    of sets of this size. `p`: how often real images have as many or more; beta-binomial, as it counts the threshold's
    own error.
    """

    threshold: float
    copies: int
    images: int
    interval: tuple[float, float]
    null: float
    null_interval: tuple[float, float]
    p: float

    @property
    def share(self) -> float:
        """Copies among the images."""
        return self.copies / self.images

    @property
    def called(self) -> bool:
        """Whether it is more than real images show, at 1 %."""
        return self.p < ALPHA

    def to_json(self) -> CopyShare:
        """Plain data."""
        return {
            "images": self.images,
            "share": self.share,
            "interval": list(self.interval),
            "null": self.null,
            "null_interval": list(self.null_interval),
            "threshold": self.threshold,
            "p": self.p,
        }


def copy_share(distances: Floats, held_out: Floats, seed: int = 0) -> Share:
    """The copy share of distances (N,) to the nearest training image, against those of held-out real images (M,).

    The number of further real images below the k-th smallest of M is beta-binomial with (N, k, M + 1 - k) whatever the
    distribution: the null. The interval draws the threshold's rank from Beta(k, M + 1 - k), as a bootstrap of the
    held-out images would, and for each the share from Jeffreys' posterior of the images below it.
    """
    ordered, own = np.sort(held_out), np.sort(distances)
    n, m = len(own), len(ordered)
    k = max(1, round(QUANTILE * (m + 1)))
    threshold = float(ordered[k - 1])
    copies = int(np.searchsorted(own, threshold, "left"))
    rng = np.random.default_rng([seed, n, m])
    ranks = np.minimum((rng.beta(k, m + 1 - k, DRAWS) * m).astype(int), m - 1)
    below = np.searchsorted(own, ordered[ranks], "left")
    shares = rng.beta(below + 0.5, n - below + 0.5)
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(shares, tails)
    null = stats.betabinom(n, k, m + 1 - k)
    null_low, null_high = null.ppf(tails) / n
    return Share(
        threshold=threshold,
        copies=copies,
        images=n,
        interval=(min(float(low), copies / n), max(float(high), copies / n)),
        null=k / (m + 1),
        null_interval=(float(null_low), float(null_high)),
        p=float(null.sf(copies - 1)),
    )


def verdict(shares: Sequence[Share]) -> Verdict:
    """`copies` where in any space more images lie near training images than of real ones, else `not told from real
    images`."""
    return "copies" if any(share.called for share in shares) else "not told from real images"


@dataclass(frozen=True)
class Measured:
    """One space: held-out distances, those of the synthetic images, and per edge the way back to members and
    non-members."""

    space: str
    held_out: Floats
    made: Crossed
    members: Floats
    non_members: Floats

    def prefix(self, number: int, images: int) -> SpaceCopies:
        """What the first `images` synthetic ones, the `number`-th edge, are in this space."""
        return {
            **copy_share(self.made.distance[:images], self.held_out).to_json(),
            "median": float(np.median(self.made.distance[:images])),
            **membership(self.members[number], self.non_members[number]),
        }


def membership(members: Floats, non_members: Floats) -> MembershipAuc:
    """AUC of minus the distance to the nearest synthetic image, members against non-members, with DeLong's 95 %
    interval."""
    scores = -np.concatenate([members, non_members])
    auc = delong(scores, np.arange(len(scores)) < len(members))
    error = auc.error if math.isfinite(auc.error) else 0.0
    return {"auc": auc.value, "auc_interval": auc.interval.as_list() if error else [None, None]}


def measure(
    space: Space,
    synthetic: Pixels,
    train: Pixels,
    held_out: Pixels,
    edges: Sequence[int],
    device: torch.device | str = "cpu",
) -> Measured:
    """All distances of one space; images (N, H, W, 3) of one size, `edges` the sizes of the sets, rising, at most N."""
    held = held_out[sample(len(held_out), HELD_OUT)]
    attacked = held[sample(len(held), ATTACKED)]
    made = cross(space, synthetic[: edges[-1]], train, edges, device)
    strangers = cross(space, synthetic[: edges[-1]], attacked, edges, device)
    return Measured(space.name, cross(space, held, train, device=device).distance, made, made.back, strangers.back)


def pairs(made: Crossed) -> list[Pair]:
    """The nearest pairs, each training image once, and those in the middle: rows of the synthetic and training
    images."""
    order = np.argsort(made.distance, kind="stable")
    seen: set[int] = set()
    nearest: list[int] = []
    for row in order:
        if int(made.index[row]) not in seen and len(nearest) < PAIRS:
            seen.add(int(made.index[row]))
            nearest.append(int(row))
    middle = order[max(0, (len(order) - PAIRS) // 2) :][:PAIRS].tolist()
    told: list[tuple[Literal["nearest", "middle"], int]] = [("nearest", row) for row in nearest]
    told += [("middle", row) for row in middle]
    return [
        {"which": which, "synthetic": row, "training": int(made.index[row]), "distance": float(made.distance[row])}
        for which, row in told
    ]
