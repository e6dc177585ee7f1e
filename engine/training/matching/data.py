"""What the fine-tune learns from: latents and encoded prompts, computed once by Ray Data, or live at every step with
equal results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from engine import output
from engine.cluster.progress import Reporter
from engine.conditions import row_pool, stored
from engine.conditions.table import Conditions
from engine.diffusion import checkpoint as checkpoints
from engine.diffusion import families
from engine.diffusion.checkpoint import Checkpoint
from engine.diffusion.families.family import Condition, Encoder, to_latents
from engine.diffusion.tiny.directory import normalise
from engine.errors import DataError
from engine.images.image_reader import Reader
from engine.spec import RunSpec
from engine.spec.training import MatchSpec
from engine.storage.store import Store
from engine.training.latent_cache import Cache, Inputs

INPUTS = output.MATCH_INPUTS
EMPTY = ("", None)
NO_PLACE = (-1, 0)

Told = tuple[str, int | None]  # a prompt, and the generator's number of its class
Place = tuple[int, int] | None  # where image features stand among the text tokens
NUMBERS = pa.large_list(pa.float32())


def pipeline_of(checkpoint: Checkpoint, device: str, match: MatchSpec) -> Any:
    """The generator as a fine-tune uses it: in `match.dtype`, the VAE in float32, and so the denoiser where all of it
    is tuned."""
    pipeline = checkpoints.load(checkpoint, device, match.dtype)
    with checkpoints.quiet():
        pipeline.vae.to(torch.float32)
        if match.adapter == "full":
            getattr(pipeline, families.of(pipeline).denoiser).to(torch.float32)
    return pipeline


class Encoding:
    """Encodes images and prompts of a generator one at a time, so that nothing depends on its neighbours; float32
    results."""

    def __init__(self, pipeline: Any, *, flip: bool) -> None:
        self._vae, self._flip = pipeline.vae, flip
        self.encoder: Encoder = families.of(pipeline).encoder(pipeline)

    @torch.no_grad()
    def latents(self, pixels: np.ndarray) -> torch.Tensor:
        """Scaled latents (N, V, C, h, w) on the CPU of pixels (N, H, W, 3) uint8: V is 2 with mirror images, else 1."""
        images = normalise(torch.from_numpy(pixels).to(self._vae.device))
        found = [torch.cat([to_latents(self._vae, variant) for variant in self._variants(image)]) for image in images]
        return torch.stack(found).cpu()

    def told(self, asked: Sequence[Told]) -> Condition:
        """Conditions of prompts, stacked, on the CPU."""
        found = [self.encoder.encode(*one) for one in asked]
        stacked = {name: torch.stack([one[name] for one in found]).cpu() for name in found[0]}
        # cloned: what inference mode has made cannot take part in training
        return {name: (v.float() if v.is_floating_point() else v).clone() for name, v in stacked.items()}

    def _variants(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image[None], image[None].flip(3)] if self._flip else [image[None]]


@dataclass(frozen=True)
class Prompts:
    """The distinct (prompt, class) pairs of N training images and each image's row (N,) among them."""

    distinct: tuple[Told, ...]
    rows: torch.Tensor

    @classmethod
    def of(cls, conditions: Conditions) -> Prompts:
        """Those of a run."""
        labels = map(conditions.class_number, conditions.labels.tolist())
        pairs: list[Told] = list(zip(conditions.prompts, labels, strict=True))
        numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        return cls(tuple(numbers), torch.tensor([numbers[pair] for pair in pairs]))


@dataclass(frozen=True)
class Live(Inputs):
    """The same inputs without a cache: images and prompts are read and encoded when they are drawn."""

    reader: Reader
    rows: pa.Table
    told: tuple[Told, ...]
    encoding: Encoding
    shape: tuple[int, ...]

    @property
    def variants(self) -> int:
        """V."""
        return self.shape[0]

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return self.shape[1:]

    def draw(self, variants: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Read and encoded now."""
        latents = self.encoding.latents(self.reader.pixels(self.rows.take(rows.numpy())))
        return latents[torch.arange(len(rows)), variants]

    def prompts(self, rows: torch.Tensor, without: torch.Tensor) -> Condition:
        """Encoded now."""
        pairs = zip(rows.tolist(), without.tolist(), strict=True)
        return self.encoding.told([EMPTY if dropped else self.told[row] for row, dropped in pairs])


def precompute(
    spec: RunSpec,
    checkpoint: Checkpoint,
    rows: pa.Table,
    conditions: Conditions,
    store: Store,
    made_from: Mapping[str, object],
    progress: Reporter,
    run: row_pool.Run = row_pool.run,
) -> None:
    """Write match/inputs.parquet: key, latents and encoded prompts of each training image; nothing to do when it is
    there.

    `run` does the work, by default the actor pool of a session. A row holds the prompts that its image is the first to
    have; the first row begins with the empty one.
    """
    if stored.is_current(store, (INPUTS,), made_from):
        return
    prompts = Prompts.of(conditions)
    asked: list[list[Told]] = [[] for _ in range(len(rows))]
    asked[0].append(EMPTY)
    for row, first in enumerate(_firsts(prompts.rows)):
        if first:
            asked[row].append(prompts.distinct[int(prompts.rows[row])])
    work = rows.append_column("asked", pa.array([json.dumps(pairs) for pairs in asked]))
    where = row_pool.device(spec.resources, needs_model=True)
    with progress.task("match: latents and prompts", len(rows)) as task:
        made = run(partial(input_work, spec, checkpoint, where), work, spec.resources, where, task)
    kinds = json.loads(made.schema.metadata[b"kinds"])
    stored.publish(store, INPUTS, made.append_column("key", rows["key"]), made_from, kinds=kinds)


def _firsts(rows: torch.Tensor) -> list[bool]:
    """Whether each entry is the first of its value."""
    seen: set[int] = set()
    return [not (row in seen or seen.add(row)) for row in rows.tolist()]  # type: ignore[func-returns-value]


def input_work(spec: RunSpec, checkpoint: Checkpoint, device: str) -> row_pool.Work:
    """What an actor does: catalog rows with the prompts asked of them in, latents and encoded prompts out."""
    assert spec.match is not None
    encoding = Encoding(pipeline_of(checkpoint, device, spec.match), flip=flips(spec))
    reader, empty = Reader(spec), encoding.told([EMPTY])

    def work(rows: pa.Table) -> pa.Table:
        latents = encoding.latents(reader.pixels(rows.drop_columns("asked")))
        finite = latents.flatten(1).isfinite().all(1)
        if not finite.all():
            key = rows["key"][int((~finite).nonzero()[0])].as_py()
            raise DataError(key, "its latent is not finite", "check the image and the checkpoint's VAE")
        asked = [[(text, label) for text, label in json.loads(some)] for some in rows["asked"].to_pylist()]
        told = [
            encoding.told(pairs) if pairs else {name: value[:0] for name, value in empty.items()} for pairs in asked
        ]
        columns = {"latents": list(latents)} | {f"told_{name}": [one[name] for one in told] for name in empty}
        examples = {
            name: values[0] if name == "latents" else values[0].new_empty(values[0].shape[1:])
            for name, values in columns.items()
        }
        kinds = {name: [list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in examples.items()}
        arrays = [
            pa.array([value.float().numpy().reshape(-1) for value in values], NUMBERS) for values in columns.values()
        ]
        return pa.table(arrays, names=list(columns)).replace_schema_metadata({"kinds": json.dumps(kinds)})

    return work


def load(store: Store, conditions: Conditions, place: Place) -> Cache:
    """The cache that `precompute` has written; DataError where it belongs to other images."""
    table, about = stored.read(store, INPUTS)
    if tuple(table["key"].to_pylist()) != conditions.keys:
        raise DataError(INPUTS, "belongs to other images", "remove it and run the same command again")
    values = {name: _tensor(table[name], *kind) for name, kind in about["kinds"].items()}
    told = {name.removeprefix("told_"): v.roll(-1, 0) for name, v in values.items() if name != "latents"}
    return _cache(values["latents"], told, Prompts.of(conditions), conditions, place)


def computed(spec: RunSpec, rows: pa.Table, conditions: Conditions, encoding: Encoding, place: Place) -> Cache:
    """The same cache, computed here and now."""
    prompts = Prompts.of(conditions)
    latents = encoding.latents(Reader(spec).pixels(rows))
    return _cache(latents, encoding.told([*prompts.distinct, EMPTY]), prompts, conditions, place)


def live(spec: RunSpec, rows: pa.Table, conditions: Conditions, encoding: Encoding, place: Place) -> Live:
    """Inputs that are encoded when they are drawn."""
    prompts, reader = Prompts.of(conditions), Reader(spec)
    told = tuple(prompts.distinct[row] for row in prompts.rows.tolist())
    shape = tuple(encoding.latents(reader.pixels(rows.slice(0, 1))).shape[1:])
    return Live(*_shared(conditions, place, shape[0]), reader, rows, told, encoding, shape)


def flips(spec: RunSpec) -> bool:
    """Whether mirror images are trained on too."""
    return spec.match is not None and spec.match.augment == "flip"


def _cache(latents: torch.Tensor, told: Condition, prompts: Prompts, conditions: Conditions, place: Place) -> Cache:
    by_variant = latents.transpose(0, 1).contiguous()
    return Cache(*_shared(conditions, place, len(by_variant)), by_variant, told, prompts.rows)


def _shared(
    conditions: Conditions, place: Place, variants: int
) -> tuple[torch.Tensor, torch.Tensor | None, tuple[int, int]]:
    """Labels, tokens and place; a mirror image has the feature of its image, as it has at sampling."""
    labels = torch.from_numpy(conditions.labels.astype(np.int64))
    if place is None:
        return labels, None, NO_PLACE
    tokens = torch.from_numpy(np.array(conditions.features, np.float32))
    return labels, tokens[None].expand(variants, -1, -1), place


def _tensor(column: pa.ChunkedArray, shape: Sequence[int], dtype: str) -> torch.Tensor:
    """All numbers of a column of lists as one tensor of rows of a shape."""
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
    return torch.from_numpy(flat.reshape(-1, *shape)).to(getattr(torch, dtype))
