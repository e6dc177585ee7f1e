"""`mimeo evaluate`: classifiers on other sets and under corruptions, and the gap between real and synthetic images."""

from __future__ import annotations

import json

from engine import output as tree
from engine.cluster.terminal import Terminal
from pipelines.context import open_run
from pipelines.options import Output, Recipe, Set
from pipelines.verbs import run_stages, upto


def main(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """Evaluate the run's classifiers on other sets and under corruptions, and measure the gap between real and
    synthetic."""
    from engine.evaluation.evaluation_precheck import check

    with open_run(recipe, set_, output, "evaluate", check) as run:
        from engine.cluster.session import session
        from engine.evaluation.classifier_evaluation import evaluate, finished, needs_synthetic
        from engine.images import catalog
        from engine.report.evaluation_page import tables
        from engine.storage.claim import read_spec

        result = finished(run.spec, run.store)
        if result is not None:
            run.reporter.note(f"nothing to do: {run.store.url} holds the finished evaluation")
        else:
            run.reporter.note("starting Ray ...")
            with session(run.spec.resources, store=run.store):
                run_stages(run, upto("generate" if needs_synthetic(run.spec, run.store) else "catalog"))
                result = evaluate(run.spec, catalog.load(run.store), run.store, run.reporter)
            if run.store.exists(tree.REPORT):
                from engine.report import html

                html.write(run.store, read_spec(run.store))
    console = Terminal()
    for table in tables(result):
        console.print(table)
    console.print(json.dumps({"results": f"{run.store.url}/results/evaluate.json"}), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["evaluate", *sys.argv[1:]]))
