"""`mimeo report`: write the self-contained HTML report of a run again."""

from __future__ import annotations

from engine import output
from engine.cluster.terminal import say
from engine.storage.claim import read_spec
from engine.storage.store import open_store
from pipelines.options import Url


def main(url: Url) -> None:
    """Write the HTML report of a run again, from what the run holds now."""
    spec = read_spec(open_store(url))
    store = open_store(url, probe=True)
    from engine.report import html
    from engine.shards import seal

    html.write(store, spec)
    seal.update(store, (html.GALLERY, html.CARD, html.REPORT))
    say(str(store.local(output.REPORT) or f"{store.url}/{output.REPORT}"))


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["report", *sys.argv[1:]]))
