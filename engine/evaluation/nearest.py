"""Distances to the nearest image of another set, over mirror images and shifts by a pixel, in blocks of bounded
memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from engine.training.judge_model import Judge

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SHIFTS = (-1, 0, 1)
ROWS, COLUMNS = 2048, 4096  # of one block of distances: 32 MB
HELD_BYTES = 256 * 2**20  # of images' points at once


def views(pixels: Pixels) -> Iterator[Pixels]:
    """The images (N, H, W, C) as they are, then mirrored and shifted by up to a pixel each way: 18 sets, edges
    repeated."""
    size = pixels.shape[1:3]
    order = sorted(((y, x) for y in SHIFTS for x in SHIFTS), key=lambda shift: shift != (0, 0))
    for mirrored in (pixels, pixels[:, :, ::-1]):
        padded = np.pad(mirrored, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        for y, x in order:
            yield padded[:, 1 + y : 1 + y + size[0], 1 + x : 1 + x + size[1]]


@dataclass(frozen=True)
class PixelSpace:
    """Root mean square difference of pixels, 0 to 255, smallest over the `views` of the real image."""

    grey: bool  # all channels are equal: one is enough

    @property
    def name(self) -> str:
        """Its key in results."""
        return "pixels"

    def points(self, pixels: Pixels) -> NDArray[np.float32]:
        """(N, D) of images (N, H, W, 3), scaled such that Euclidean distances are root mean squares."""
        own = pixels[..., :1] if self.grey else pixels
        flat = own.reshape(len(own), -1).astype(np.float32)
        return np.asarray(flat / np.sqrt(np.float32(flat.shape[1])))

    def views(self, pixels: Pixels) -> Iterator[NDArray[np.float32]]:
        """The points of each view of real images."""
        return (self.points(view) for view in views(pixels))


@dataclass(frozen=True)
class FeatureSpace:
    """Euclidean distance in the last features of a judge of real training images, smaller of the real image's and its
    mirror's."""

    model: Judge
    device: torch.device | str = "cpu"

    @property
    def name(self) -> str:
        """Its key in results."""
        return "features"

    def points(self, pixels: Pixels) -> NDArray[np.float32]:
        """(N, D): the judge's last channels, averaged over the image."""
        import torch

        from engine.training.judge_model import EVALUATION_BATCH, normalise

        with torch.inference_mode():
            chunks = torch.from_numpy(np.ascontiguousarray(pixels)).split(EVALUATION_BATCH)
            out = [self.model.features(normalise(chunk.to(self.device))).mean(dim=(2, 3)).cpu() for chunk in chunks]
        return np.asarray(torch.cat(out).numpy())

    def views(self, pixels: Pixels) -> Iterator[NDArray[np.float32]]:
        """The points of the images and of their mirror images."""
        return (self.points(own) for own in (pixels, pixels[:, :, ::-1]))


Space = PixelSpace | FeatureSpace


def is_grey(pixels: Pixels) -> bool:
    """Whether the three channels of every image are equal."""
    return bool((pixels == pixels[..., :1]).all())


@dataclass(frozen=True)
class Crossed:
    """Images against real ones: `distance` and `index` (N,) of the nearest real image of each.

    `back` (S, M): of each real image the distance to the nearest of the first `edges[s]` images.
    """

    distance: Floats
    index: Ints
    back: Floats


def cross(
    space: Space, images: Pixels, real: Pixels, edges: Sequence[int] = (), device: torch.device | str = "cpu"
) -> Crossed:
    """Nearest real images (M, H, W, 3) of `images` (N, H, W, 3), over the views of the real ones, and the way back.

    By matrix products of blocks of 2,048 x 4,096; distances to the nearest real image are then computed once more in
    float64 from the points themselves, as those of products lose digits near zero. `edges` rise; the last one is at
    most N. About 600 MB are held at once beside the images.
    """
    import torch

    back = torch.full((len(edges), len(real)), float("inf"), device=device)
    distance, index = np.full(len(images), np.inf), np.zeros(len(images), np.int64)
    each = max(ROWS, HELD_BYTES // (4 * int(np.prod(images.shape[1:]))))
    for low in range(0, len(images), each):
        queries = _Queries(space.points(images[low : low + each]), device)
        cuts = _cuts(low, min(low + each, len(images)), edges)
        for first in range(0, len(real), COLUMNS):
            held = back[:, first : first + COLUMNS]
            for view in space.views(real[first : first + COLUMNS]):
                queries.meet(view, first, cuts, held)
        distance[low : low + each], index[low : low + each] = queries.exact, queries.index.cpu().numpy()
    return Crossed(distance, index, back.clamp_min(0).sqrt().double().cpu().numpy())


class _Queries:
    """Points (N, D) and the nearest real point of each so far; all are moved by one mean, which keeps products
    small."""

    def __init__(self, points: NDArray[np.float32], device: torch.device | str) -> None:
        import torch

        found = torch.from_numpy(points).to(device)
        self.centre = found.mean(0)
        self.points = found - self.centre
        self.squares = (self.points**2).sum(1)
        self.best = torch.full((len(points),), float("inf"), device=device)
        self.index = torch.zeros(len(points), dtype=torch.int64, device=device)
        self.exact = np.full(len(points), np.inf)

    def meet(
        self, view: NDArray[np.float32], first: int, cuts: Sequence[tuple[int, int, int]], back: torch.Tensor
    ) -> None:
        """Compare with real points (m, D), whose numbers begin at `first`; `back` (S, m) is lowered in place."""
        import torch

        real = torch.from_numpy(np.ascontiguousarray(view)).to(self.points.device) - self.centre
        lengths = (real**2).sum(1)
        for segment, start, stop in cuts:
            found = torch.addmm(lengths[None], self.points[start:stop], real.T, alpha=-2)
            value, place = found.min(1)
            value += self.squares[start:stop]
            rows = (value < self.best[start:stop]).nonzero()[:, 0]
            self.best[start + rows], self.index[start + rows] = value[rows], place[rows] + first
            chosen = (self.points[start + rows].double() - real[place[rows]].double()).square().sum(1).sqrt()
            self.exact[(start + rows).cpu().numpy()] = chosen.cpu().numpy()
            if segment < len(back):
                column = found.add_(self.squares[start:stop, None]).min(0).values
                torch.minimum(back[segment:], column[None], out=back[segment:])


def _cuts(low: int, high: int, edges: Sequence[int]) -> list[tuple[int, int, int]]:
    """Blocks (segment, start, stop) of the rows low to high, counted from low; none goes over an edge.

    The segment is that of the first edge above them, len(edges) for rows after the last.
    """
    bounds = sorted({low, high, *(edge for edge in edges if low < edge < high)})
    return [
        (int(np.searchsorted(edges, start, "right")), first - low, min(first + ROWS, stop) - low)
        for start, stop in pairwise(bounds)
        for first in range(start, stop, ROWS)
    ]


def sample(count: int, most: int) -> Ints:
    """At most `most` rows of `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
