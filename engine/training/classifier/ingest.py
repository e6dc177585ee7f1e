"""Ray Data ingest: real and synthetic images, read once by the engine's own readers, into blocks that all workers
share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from engine import errors
from engine.cluster.progress import Reporter
from engine.errors import DataError, MimeoError
from engine.images.encode import encode
from engine.images.image_reader import Reader
from engine.shards.shard_reader import samples
from engine.spec import RunSpec
from engine.storage.store import open_store
from engine.training.judge_data import LOSSY, decode_into, sealed_pixels, shrink, through_codec

Ints = NDArray[np.int64]
Pixels = NDArray[np.uint8]
DECODED_SIDE = 64  # up to this side blocks hold pixels, above it encoded images
CHUNK_BYTES = 16 * 2**20
MAX_CHUNK = 4096
FAILED = -1  # the label of a row that holds an error
COLUMNS = pa.schema([("chunk", pa.int64()), ("label", pa.int64()), ("index", pa.int64()), ("image", pa.large_binary())])


@dataclass(frozen=True)
class Request:
    """What to read of one set: catalog rows of this run, or shards of a finished output, one chunk a task.

    `rows`: an `ObjectRef` of the catalog rows, or None; `url`: the output; `pieces`: (first row, number) or shard
    indices;
    `same_codec`: through the lossy codec of the synthetic set; `below`, `offset`: samples with a smaller plan index,
    which is shown as index + offset.
    """

    name: str
    pieces: tuple[tuple[int, ...], ...]
    rows: Any = None
    url: str = ""
    same_codec: bool = False
    below: int = 0
    offset: int = 0
    names: tuple[str, ...] = ()
    autoencoder: str | None = None


@dataclass
class Images:
    """A set of labelled images in blocks of the object store (or of this process): labels (N,), index (N,) rising.

    Picklable: the blocks travel by reference and are mapped into memory, not copied, where they are used on their node.
    """

    blocks: list[Any]
    starts: Ints
    labels: Ints
    index: Ints
    side: int
    _open: dict[int, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": {}}

    def take(self, rows: Ints, pool: ThreadPoolExecutor | None = None) -> Pixels:
        """(N, side, side, 3) uint8 pixels of rows, in their order; encoded images are decoded in `pool`."""
        out = np.empty((len(rows), self.side, self.side, 3), np.uint8)
        self.put(rows, out, np.arange(len(rows)), pool)
        return out

    def put(self, rows: Ints, out: Pixels, places: Ints, pool: ThreadPoolExecutor | None = None) -> None:
        """Write the pixels of `rows` (N,) to the places (N,) of `out` (M, side, side, 3), without a copy in between."""
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        jobs: list[tuple[int, memoryview]] = []
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            block, within = self._block(int(number)), rows[mine] - self.starts[number]
            if isinstance(block, np.ndarray):
                out[places[mine]] = block[within]
            else:
                data, offsets = block
                spans = zip(places[mine].tolist(), within.tolist(), strict=True)
                jobs += [(at, data[offsets[k] : offsets[k + 1]]) for at, k in spans]

        def fill(job: tuple[int, memoryview]) -> None:
            decode_into(job[1], out[job[0]])

        for _ in pool.map(fill, jobs) if pool else map(fill, jobs):
            pass

    def _block(self, number: int) -> Any:
        """Pixels (n, side, side, 3), or encoded bytes with offsets; nothing is copied."""
        if number not in self._open:
            block = self.blocks[number]
            if not isinstance(block, pa.Table):
                import ray

                block = ray.get(block)
            self._open[number] = _view(block, self.side)
        return self._open[number]


def _view(table: pa.Table, side: int) -> Any:
    column = table["image"].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    _, ends, data = column.buffers()
    offsets = np.frombuffer(ends, np.int64)[column.offset : column.offset + len(column) + 1]
    if side <= DECODED_SIDE:
        flat = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
        return flat.reshape(len(column), side, side, 3)
    return memoryview(data).cast("B"), offsets


def side_of(spec: RunSpec) -> int:
    """The side of stored images: the classifier's where they are stored as pixels and it is smaller, else
    images.size."""
    size = spec.images.size
    wanted = (spec.train.size if spec.train else None) or size
    return min(size, wanted) if size <= DECODED_SIDE else size


def real(name: str, spec: RunSpec, rows: pa.Table, *, same_codec: bool, autoencoder: str | None = None) -> Request:
    """A request for catalog rows; `autoencoder`: a diffusers directory whose VAE encodes and decodes them first."""
    import ray

    size = _chunk(spec)
    pieces = tuple((first, min(size, rows.num_rows - first)) for first in range(0, rows.num_rows, size))
    return Request(name, pieces, ray.put(rows), same_codec=same_codec, autoencoder=autoencoder)


def synthetic(
    name: str, url: str, shards: Sequence[int], below: int, names: tuple[str, ...], offset: int = 0
) -> Request:
    """A request for the samples of a finished output with a plan index below `below`."""
    return Request(name, tuple((k,) for k in shards), url=url, below=below, names=names, offset=offset)


def ingest(spec: RunSpec, requests: Sequence[Request], progress: Reporter) -> dict[str, Images]:
    """Read all requests in one Ray Data job; requests of one name follow each other in one set.

    Blocks stay in the object store and are owned by the caller. The result depends on the requests alone, not on how
    many tasks ran or in which order they ended. Raises DataError for what is not the catalogued or sealed image.
    """
    import ray

    pieces = [(number, piece) for number, request in enumerate(requests) for piece in request.pieces]
    context: Mapping[str, Any] = {"spec": spec, "requests": list(requests)}
    shared = ray.put(context)
    items = [{"chunk": k, "request": number, "piece": list(piece)} for k, (number, piece) in enumerate(pieces)]
    found: list[tuple[int, Any, pa.Table]] = []
    facts = ray.remote(num_cpus=0)(_facts)
    with progress.task("train: images", len(items), "chunks") as task:
        data = ray.data.from_items(items, override_num_blocks=len(items))
        data = data.map_batches(_read, batch_size=1, batch_format="pyarrow", fn_kwargs={"shared": [shared]}, num_cpus=1)
        for bundle in data.iter_internal_ref_bundles():
            for ref in bundle.block_refs:
                table = ray.get(facts.remote(ref))
                if table.num_rows and table["label"][0].as_py() == FAILED:
                    _raise_told(ref)
                if table.num_rows:
                    found.append((int(table["chunk"][0].as_py()), ref, table))
                    task.update(len({chunk for chunk, _, _ in found}))
    found.sort(key=lambda entry: (entry[0], entry[2]["index"][0].as_py()))
    sets: dict[str, list[tuple[Any, pa.Table]]] = {request.name: [] for request in requests}
    for chunk, ref, table in found:
        sets[requests[pieces[chunk][0]].name].append((ref, table))
    return {name: _images(blocks, side_of(spec)) for name, blocks in sets.items()}


def _raise_told(block: Any) -> None:
    """Raise the MimeoError that a task has put in place of its images: Ray Data keeps no cause of what a task
    raises."""
    import ray

    told = json.loads(ray.get(block)["image"][0].as_py())
    raise getattr(errors, told.pop("kind"))(**told)


def _facts(block: pa.Table) -> pa.Table:
    return block.select(["chunk", "label", "index"])


def _images(blocks: Sequence[tuple[Any, pa.Table]], side: int) -> Images:
    tables = [table for _, table in blocks]
    joined = pa.concat_tables([COLUMNS.empty_table().select(["chunk", "label", "index"]), *tables])
    starts = np.cumsum([0, *(table.num_rows for table in tables)])[:-1].astype(np.int64)
    labels, index = (np.asarray(joined[name].to_numpy(), np.int64) for name in ("label", "index"))
    return Images([ref for ref, _ in blocks], starts, labels, index, side)


def _chunk(spec: RunSpec) -> int:
    side = side_of(spec)
    return max(1, min(MAX_CHUNK, CHUNK_BYTES // (side * side * 3)))


def _read(batch: pa.Table, shared: list[Any]) -> pa.Table:
    """One Ray Data task: a chunk of images as a table with the columns of COLUMNS."""
    import ray

    context = ray.get(shared[0])
    spec, item = context["spec"], batch.to_pylist()[0]
    request: Request = context["requests"][item["request"]]
    try:
        if request.rows is None:
            images, labels, index = _shard(spec, request, item["piece"][0])
        else:
            images, labels, index = _rows(spec, request, *item["piece"])
    except MimeoError as error:
        told = {"kind": type(error).__name__, "where": error.where, "what": error.what, "fix": error.fix}
        images, labels, index = [json.dumps(told).encode()], [FAILED], [0]
    return _table(item["chunk"], images, labels, index)


def _table(chunk: int, images: Sequence[bytes], labels: Sequence[int], index: Sequence[int]) -> pa.Table:
    columns = [[chunk] * len(images), labels, index]
    return pa.table([*(pa.array(column, pa.int64()) for column in columns), _binary(images)], schema=COLUMNS)


def _binary(images: Sequence[bytes]) -> pa.Array:
    return pa.array(images, pa.large_binary())


def _rows(spec: RunSpec, request: Request, first: int, count: int) -> tuple[list[bytes], list[int], list[int]]:
    import ray

    rows = ray.get(request.rows).slice(first, count)
    pixels = Reader(spec).pixels(rows)
    if request.autoencoder is not None:
        from engine.training.classifier.reconstruct import reconstructed

        pixels = reconstructed(pixels, request.autoencoder)
    lossy = request.same_codec and spec.generate.format in LOSSY
    if side_of(spec) > DECODED_SIDE:
        kind = spec.generate.format if request.same_codec else "png"
        images = [encode(image, kind, spec.generate.quality) for image in pixels]
    else:
        if lossy:
            pixels = np.stack([through_codec(image, spec) for image in pixels])
        images = [image.tobytes() for image in shrink(pixels, side_of(spec))]
    return images, rows["label"].to_pylist(), list(range(first, first + count))


def _shard(spec: RunSpec, request: Request, shard: int) -> tuple[list[bytes], list[int], list[int]]:
    images, labels, index = [], [], []
    side = side_of(spec)
    for sample in samples(open_store(request.url), [shard]):
        where = f"{request.url}, sample {sample.key}"
        number, label = sample.meta.get("index"), sample.label
        if not isinstance(number, int) or label is None:
            raise DataError(where, "has no index or no label", "restore the shard")
        if number >= request.below:
            break
        _check_class(sample.meta.get("class"), label, request.names, where)
        if side > DECODED_SIDE:
            images.append(sample.image)
        else:
            images.append(shrink(sealed_pixels(sample.image, spec, where)[None], side)[0].tobytes())
        labels.append(label)
        index.append(number + request.offset)
    return images, labels, index


def _check_class(name: object, label: int, names: tuple[str, ...], where: str) -> None:
    if label >= len(names) or (name is not None and name != names[label]):
        told = f"class {name!r} (label {label})" if name is not None else f"label {label}"
        what = f"{told} is no class of the real images"
        raise DataError(where, what, "train on an output that was made from these classes")


def held(pixels: Pixels, labels: Ints) -> Images:
    """The same interface over arrays of this process."""
    side = pixels.shape[1]
    table = _table(0, [image.tobytes() for image in pixels], labels.tolist(), range(len(labels)))
    made = _images([(table, table.select(["chunk", "label", "index"]))], side)
    return replace(made, blocks=[table])
