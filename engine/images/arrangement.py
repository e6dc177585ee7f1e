"""What inspection found, arranged as the catalog's table: bad and equal images left out, near-duplicates kept apart,
splits assigned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import DataError
from engine.images import apart
from engine.images.columns import ROW_GROUP, fitted, wide
from engine.images.inspection import FACTS
from engine.images.listing import Bad
from engine.images.splits import NAMES, assign, refuse_empty_test, require_all
from engine.spec import RunSpec

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("split", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("row", pa.int64()),
        ("sha256", pa.string()),
        ("pixels_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("notes", pa.string()),
    ]
)


@dataclass(frozen=True)
class Arranged:
    """The catalog's table, its near-duplicates (`apart.SCHEMA`), and the images that are not used."""

    table: pa.Table
    alike: pa.Table
    left_out: list[Bad]


def arranged(
    facts: list[pa.Table],
    known_bad: list[Bad],
    names: tuple[str, ...],
    numbers: np.ndarray,
    spec: RunSpec,
    *,
    given_test: bool,
) -> Arranged:
    """The catalog's table from what inspection found (`facts`, which is emptied), and all that is not used.

    Takes a time that grows with the images, and MEMORY bytes for each. Raises DataError as `catalog.build` does.
    """
    whole = pa.concat_tables([FACTS.empty_table(), *facts]).cast(wide(FACTS))
    facts.clear()
    whole = whole.sort_by("key").combine_chunks()
    usable = pc.equal(whole["reason"], "")
    bad = known_bad + _bad_rows(whole.filter(pc.invert(usable)))
    good = whole.filter(usable) if len(bad) > len(known_bad) else whole
    del whole
    _check_bad(good.num_rows, bad, spec)
    good, repeated = _distinct(good, [names[n] for n in numbers.tolist()])
    good, alike, set_aside = apart.keep_apart(good, numbers, spec.split)
    bad += repeated + set_aside
    table = _split_table(good, names, numbers, spec, bad if given_test else None, alike.group)
    return Arranged(table, alike.table(table), bad)


def _bad_rows(facts: pa.Table) -> list[Bad]:
    columns = [facts[name].to_pylist() for name in ("set", "key", "code", "reason", "detail")]
    return [Bad(*row) for row in zip(*columns, strict=True)]


def counted(reasons: Counter[str]) -> str:
    """The six commonest reasons with their counts."""
    return ", ".join(
        f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda r: (-r[1], r[0]))[:6]
    )


def _check_bad(good: int, bad: list[Bad], spec: RunSpec) -> None:
    if getattr(spec.source, "class_names", None) is not None:  # what it leaves out is not bad
        bad = [entry for entry in bad if entry.reason != "unknown_label"]
    total = good + len(bad)
    if total == 0:
        raise DataError("source", "holds no image of its classes", "check the path, and source.class_names")
    if good == 0 or len(bad) > spec.images.max_bad_fraction * total:
        limit = "" if good == 0 else f", images.max_bad_fraction is {spec.images.max_bad_fraction:g}"
        told = counted(Counter(entry.reason for entry in bad))
        first = f"{bad[0].key[:80]}: {bad[0].detail[:80]}"
        fix = f"look at the first, {first}"
        raise DataError("source", f"{len(bad):,} of {total:,} images cannot be used ({told}){limit}", fix)


def _distinct(good: pa.Table, class_of: list[str]) -> tuple[pa.Table, list[Bad]]:
    """Keep the first of images with equal pixels: a given test set's before others, then by key; and the rest with the
    reason.

    Where images of one set have equal pixels and different labels, one of the labels is wrong: all of them go.
    """
    pixels = good["pixels_sha256"].combine_chunks().dictionary_encode().indices.to_numpy()
    code, in_main = good["code"].to_numpy(), pc.not_equal(good["set"], "test").to_numpy()
    order = np.argsort(in_main, kind="stable")
    _, first = np.unique(pixels[order], return_index=True)
    other = order[first][pixels]  # the row that is kept for each row
    torn = (code != code[other]) & (in_main == in_main[other])
    conflict = np.isin(pixels, pixels[torn]) & (in_main == in_main[other])
    repeated = np.flatnonzero((other != np.arange(len(other))) | conflict)
    columns = [good[name].take(repeated).to_pylist() for name in ("set", "key", "sha256")]
    against = [good[name].take(other[repeated]).to_pylist() for name in ("key", "sha256")]
    gone = []
    for row, own, key, file, kept, its_file in zip(repeated.tolist(), *columns, *against, strict=True):
        detail = f"same {'bytes' if file == its_file else 'pixels'} as {kept}"
        if code[row] != code[other[row]]:
            detail += f", which is labelled {class_of[code[other[row]]]} and not {class_of[code[row]]}"
        if conflict[row]:
            detail = detail if kept != key else "its pixels have other labels too"
            gone.append(Bad(own, key, int(code[row]), "label_conflict", detail, kept if kept != key else ""))
        else:
            gone.append(Bad(own, key, int(code[row]), "duplicate", detail, kept))
    keep = np.ones(good.num_rows, bool)
    keep[repeated] = False
    return good.filter(pa.array(keep)) if len(repeated) else good, gone


def _split_table(
    good: pa.Table,
    names: tuple[str, ...],
    numbers: np.ndarray,
    spec: RunSpec,
    test_bad: list[Bad] | None,
    group: np.ndarray | None,
) -> pa.Table:
    """SCHEMA's columns; `test_bad` holds what is not used where a test set is given, and is None where none is."""
    labels = numbers[good["code"].to_numpy()].astype(np.int32)
    in_test = pc.equal(good["set"], "test").to_numpy()
    require_all(np.bincount(labels[~in_test], minlength=len(names)), names, "good, distinct image")
    if test_bad is not None and not in_test.any():
        refuse_empty_test(entry.reason for entry in test_bad if entry.set)
    pixels = (text for chunk in good["pixels_sha256"].chunks for text in _texts(chunk))
    splits = assign(spec.split, spec.seed, labels, pixels, in_test, len(names), group)
    made = {
        "label": pa.array(labels, pa.int32()),
        "class_name": _named(labels, names),
        "split": _named(splits.astype(np.int32), NAMES),
    }
    columns = [made[name] if name in made else good[name] for name in SCHEMA.names]
    return fitted(pa.table(columns, schema=wide(SCHEMA)), SCHEMA)


def _texts(column: pa.Array) -> Iterator[str]:
    """The values of a column, some at a time."""
    for start in range(0, len(column), ROW_GROUP):
        yield from column.slice(start, ROW_GROUP).to_pylist()


def _named(numbers: np.ndarray, names: Sequence[str]) -> pa.Array:
    """The name of each number."""
    return pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array(names, pa.large_string())).dictionary_decode()
