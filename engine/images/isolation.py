"""Images that kill the process that decodes them: the task is tried again with each image in a child process."""

from __future__ import annotations

import hashlib
import multiprocessing
import uuid
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pyarrow as pa

from engine import output
from engine.images.inspection import inspect, reasons
from engine.images.sources import ImageSource
from engine.spec.recipe import ImagesSpec
from engine.storage.store import Store

ATTEMPTS = output.CATALOG_ATTEMPTS
TIMEOUT_S = 120.0


def inspect_once(table: pa.Table, sets: Mapping[str, ImageSource], images: ImagesSpec, store: Store) -> pa.Table:
    """`inspect`, the first time that these images are tried; one by one in a child process when an earlier try has
    died.

    Ray tries a task whose process died again, for ever. A mark in the store, made before the first image is read, tells
    the second try of what happened to the first; no two tries write the same bytes, as a remote store takes equal ones
    for its own.
    """
    if store.create(ATTEMPTS + _name(table), uuid.uuid4().hex.encode()):
        return inspect(table, sets, images)
    return inspect_isolated(table, sets, images)


def inspect_isolated(table: pa.Table, sets: Mapping[str, ImageSource], images: ImagesSpec) -> pa.Table:
    """`inspect`, image by image in a child process: one that kills its process, or takes two minutes, is bad and no
    more."""
    done: list[pa.Table] = []
    while len(done) < table.num_rows:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(
                inspect, table.slice(0, 0), sets, images
            ).result()  # starting and importing is not the images' time
            try:
                while len(done) < table.num_rows:
                    row = table.slice(len(done), 1)
                    done.append(pool.submit(inspect, row, sets, images).result(TIMEOUT_S))
            except BrokenProcessPool:
                done.append(reasons(row, "killed_decoder", "the process that decoded it died"))
            except TimeoutError:
                for process in list(pool._processes.values()):
                    process.kill()
                done.append(reasons(row, "decoder_hang", f"not decoded within {TIMEOUT_S:g} s"))
    return pa.concat_tables(done)


def forget_attempts(store: Store) -> None:
    """Remove the marks, when no task runs."""
    for entry in list(store.list(ATTEMPTS)):
        store.remove(entry.name)


def _name(table: pa.Table) -> str:
    return hashlib.sha256("\n".join(table["key"].to_pylist()).encode()).hexdigest()[:32]
