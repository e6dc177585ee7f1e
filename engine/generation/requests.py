"""From planned samples to what the sampler is asked: prompt, seed, visual token, initial latents; and CLIP scores of
the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.generation.sample_plan import Rows, SampleFacts
from engine.spec import RunSpec

if TYPE_CHECKING:
    from engine.conditions.features import FeatureExtractor
    from engine.conditions.table import Conditions
    from engine.diffusion.sampler import Drawn, Request, Sampler

RealPixels = Callable[[NDArray[np.int64]], NDArray[np.uint8]]


class Requests:
    """Turns planned rows into requests with the conditions of the training images.

    `real_pixels` gives the images (N, H, W, 3) uint8 of training rows and is needed where latents start from real
    images (strength below 1); `scorer` computes CLIP features and is needed where the gate has a CLIP threshold.
    """

    def __init__(
        self,
        spec: RunSpec,
        conditions: Conditions,
        real_pixels: RealPixels | None = None,
        scorer: FeatureExtractor | None = None,
    ) -> None:
        self.conditions = conditions
        self._token = spec.generate.visual_token
        self._real_pixels = real_pixels if spec.generate.strength < 1 else None
        self._scorer = scorer

    @property
    def needs_real_pixels(self) -> bool:
        """Whether latents start from real images."""
        return self._real_pixels is not None

    def real_pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8] | None:
        """The real images that latents start from, None where they start from noise."""
        return None if self._real_pixels is None else self._real_pixels(rows)

    def make(
        self,
        rows: Rows,
        facts: Sequence[SampleFacts],
        positions: Sequence[int],
        seeds: Sequence[int],
        pixels: NDArray[np.uint8] | None,
        sampler: Sampler,
    ) -> list[Request]:
        """The requests of one batch: planned samples at `positions`, drawn with `seeds`, starting from `pixels` if
        there are any."""
        from engine.diffusion.sampler import Request

        latents = None if pixels is None else sampler.encode_latents(pixels)
        return [
            Request(
                prompt=facts[position]["prompt"],
                seed=seed,
                token=self._token_of(rows, position, seed),
                init_latents=None if latents is None else latents[number],
                label=self.conditions.class_number(int(rows.label[position])),
            )
            for number, (position, seed) in enumerate(zip(positions, seeds, strict=True))
        ]

    def clip_scores(self, drawn: Sequence[Drawn], asked: Sequence[Request]) -> list[float | None]:
        """Cosine similarity of each finite image and its prompt; None without a scorer and for what is not finite."""
        scores: list[float | None] = [None] * len(drawn)
        finite = [(n, image.pixels) for n, image in enumerate(drawn) if image.pixels is not None]
        if self._scorer is None or not finite:
            return scores
        from engine.conditions.features import clip_scores

        images = self._scorer.images(np.stack([pixels for _, pixels in finite]))
        texts = self._scorer.texts([asked[n].prompt for n, _ in finite])
        for (n, _), score in zip(finite, clip_scores(images, texts), strict=True):
            scores[n] = float(score)
        return scores

    def _token_of(self, rows: Rows, position: int, seed: int) -> NDArray[np.float32] | None:
        """The visual token (D,) of a planned sample, drawn with `seed` where it is drawn: see
        `generate.visual_token`."""
        label, anchor, row = (int(part[position]) for part in (rows.label, rows.anchor, rows.token_row))
        drawn: dict[str, Callable[[], NDArray[np.float32]]] = {
            "own": lambda: self.conditions.features[row],
            "class": lambda: self.conditions.features[row],
            "interpolation": lambda: self.conditions.between(anchor, row, seed),
            "class_mean": lambda: self.conditions.class_mean(label),
            "class_gaussian": lambda: self.conditions.class_gaussian(label, seed),
            "prior": lambda: self.conditions.prior(anchor, seed),
        }
        return None if self._token == "none" else drawn[self._token]()
