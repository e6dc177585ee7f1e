"""`mimeo equivalence`: how many synthetic images are worth n real ones."""

from __future__ import annotations

import json

from pipelines.context import open_run
from pipelines.options import Output, Recipe, Set


def main(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """How many synthetic images are worth n real ones: generators, classifiers, a fit with intervals, and what to do next."""
    from engine.study.equivalence.plan import check

    with open_run(recipe, set_, output, "equivalence", check) as run:
        from rich.console import Console

        from engine.cluster.session import session
        from engine.images import catalog
        from engine.study.equivalence.run import measure

        run.reporter.note("starting Ray ...")
        with session(run.spec.resources):
            made = catalog.build(run.spec, run.store, run.reporter)
            accuracies = measure(run.spec, made, run.store, run.reporter)
    console = Console()
    console.print(json.dumps(accuracies), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["equivalence", *sys.argv[1:]]))
