"""`mimeo search`: which ratio of synthetic to real images is best."""

from __future__ import annotations

import json

from engine import output as tree
from engine.cluster.terminal import Terminal
from pipelines.context import open_run
from pipelines.options import Output, Recipe, Set


def main(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """Which ratio of synthetic to real images is best: chosen on validation images, read once on test images."""
    from engine.study.search.search_plan import check, drawn, finished

    with open_run(recipe, set_, output, "search", lambda spec, _: check(spec), drawn) as run:
        from engine.report.search_page import figure, lines, markdown, table

        result = finished(run.spec, run.store)
        if result is not None:
            run.reporter.note(f"nothing to do: {run.store.url} holds the finished search")
        else:
            from engine.cluster.session import session
            from engine.images import catalog
            from engine.study.search.search_run import search

            run.reporter.note("starting Ray ...")
            with session(run.spec.resources, store=run.store):
                made = catalog.build(run.spec, run.store, run.reporter)
                result = search(run.spec, made, run.store, run.reporter)
        run.store.replace(tree.beside(tree.SEARCH, "png"), figure(result))
        run.store.replace(tree.beside(tree.SEARCH, "md"), markdown(result).encode())
    console = Terminal()
    console.print(table(result))
    for line in lines(result):
        console.print(line, highlight=False)
    console.print(json.dumps({"results": f"{run.store.url}/results/search.json"}), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["search", *sys.argv[1:]]))
