"""`mimeo verify`: check every byte of a finished output against its manifest."""

from __future__ import annotations

from engine.cluster.progress import reporter
from engine.cluster.terminal import say
from engine.errors import DataError
from engine.storage.store import open_store
from pipelines.options import Url


def main(url: Url) -> None:
    """Check every byte of a finished output: changed, missing, extra or swapped files end with exit code 3."""
    from engine.shards.verify import verify

    store = open_store(url)
    with reporter() as out:
        result = verify(store, out)
    for fault in result.faults[:20]:
        say(fault)
    if result.faults:
        raise DataError(
            store.url,
            f"{len(result.faults)} faults, the first: {result.faults[0]}",
            "generate again into a fresh output, or restore the files",
        )
    say(f"clean: {result.samples:,} samples in {result.shards:,} shards match the manifest")


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["verify", *sys.argv[1:]]))
