"""`mimeo verify`: check every byte of a finished output against its manifest."""

from __future__ import annotations

from engine.cluster.progress import reporter
from engine.cluster.terminal import say
from engine.errors import DataError
from engine.storage.claim import SPEC
from engine.storage.store import open_store
from pipelines.options import Url

SHOWN = 12


def main(url: Url) -> None:
    """Check every byte of a finished output: changed, missing or swapped files end with exit code 3; says what no seal
    covers."""
    from engine.shards.manifest import SEAL
    from engine.shards.verification import verify

    store = open_store(url)
    if not store.exists(SPEC) and not store.exists(SEAL):
        raise DataError(store.url, f"holds no run of mimeo ({SPEC} is missing)", "check the path")
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
    say(
        f"clean: {result.samples:,} samples in {result.shards:,} shards match the manifest, "
        f"{result.others.sealed:,} other files match seal.json"
    )
    for names, why in (
        (result.others.uncovered, "no seal covers them; see docs/how-it-works.md"),
        (result.others.pending, "a command is writing them or was interrupted; the same command seals them"),
    ):
        if names:
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            say(f"not checked: {', '.join(names[:SHOWN])}{more} ({why})")


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["verify", *sys.argv[1:]]))
