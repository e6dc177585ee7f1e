"""`mimeo report`: write the self-contained HTML report of a run again."""

from __future__ import annotations

import typer

from engine.storage.run import read_spec
from engine.storage.store import open_store
from pipelines.options import Url


def main(url: Url) -> None:
    """Write the HTML report of a run again, from what the run holds now."""
    from engine.report import html
    from engine.shards import seal

    store = open_store(url, probe=True)
    html.write(store, read_spec(store))
    seal.update(store, (html.GALLERY, html.CARD, html.REPORT))
    typer.echo(str(store.local("report.html") or f"{store.url}/report.html"))


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["report", *sys.argv[1:]]))
