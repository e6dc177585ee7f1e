"""`mimeo study`: questions that take many runs, answered with paired statistics."""

from __future__ import annotations

import json

import typer

from engine import output as tree
from engine.cluster.terminal import Terminal
from pipelines.context import open_run
from pipelines.options import Output, Recipe, Set

app: typer.Typer = typer.Typer(
    name="study", help="Questions that take many runs, answered with paired statistics.", no_args_is_help=True
)


@app.callback()
def _root() -> None:
    """Questions that take many runs, answered with paired statistics."""


@app.command()
def ablation(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """Which part of the method helps: arms over several generator seeds, trained as such, compared in pairs."""
    from engine.study.ablation_arms import check, drawn

    with open_run(recipe, set_, output, "study ablation", lambda spec, _: check(spec), drawn) as run:
        from engine.cluster.session import session
        from engine.images import catalog
        from engine.report.ablation_page import lines, markdown, table
        from engine.study import ablation_run as studies

        run.reporter.note("starting Ray ...")
        with session(run.spec.resources, store=run.store):
            made = catalog.build(run.spec, run.store, run.reporter)
            result = studies.ablation(run.spec, made, run.store, run.reporter)
        run.store.replace(tree.beside(tree.ABLATION, "md"), markdown(result).encode())
    console = Terminal()
    for kind in result["training_sets"]:
        console.print(table(result, kind))
    for line in lines(result):
        console.print(line, highlight=False)
    console.print(json.dumps({"results": f"{run.store.url}/results/ablation.json"}), soft_wrap=True, highlight=False)


@app.command()
def deliberate(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """Rounds in which the classifier so far decides what is drawn next, against a static plan of as many images."""
    from engine.study.deliberate.deliberate_run import check

    with open_run(recipe, set_, output, "study deliberate", lambda spec, _: check(spec)) as run:
        from engine.cluster.session import session
        from engine.images import catalog
        from engine.report.ablation_page import lines, markdown, table
        from engine.study.deliberate.deliberate_run import deliberate as study

        run.reporter.note("starting Ray ...")
        with session(run.spec.resources, store=run.store):
            made = catalog.build(run.spec, run.store, run.reporter)
            result = study(run.spec, made, run.store, run.reporter)
        run.store.replace(tree.beside(tree.DELIBERATE, "md"), markdown(result).encode())
    console = Terminal()
    for kind in result["training_sets"]:
        console.print(table(result, kind))
    for line in lines(result):
        console.print(line, highlight=False)
    console.print(json.dumps({"results": f"{run.store.url}/results/deliberate.json"}), soft_wrap=True, highlight=False)


@app.command()
def worth(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """What the synthetic set is worth beside the controls that it must beat, and how much of it is copies, over
    generator seeds."""
    from engine.study.worth.worth_run import check

    with open_run(recipe, set_, output, "study worth", lambda spec, _: check(spec)) as run:
        from engine.cluster.session import session
        from engine.images import catalog
        from engine.report.worthtable import lines, markdown, table
        from engine.study.worth.worth_run import worth as study

        run.reporter.note("starting Ray ...")
        with session(run.spec.resources, store=run.store):
            made = catalog.build(run.spec, run.store, run.reporter)
            result = study(run.spec, made, run.store, run.reporter)
        run.store.replace(tree.beside(tree.WORTH, "md"), markdown(result).encode())
    console = Terminal()
    console.print(table(result))
    for line in lines(result):
        console.print(line, highlight=False)
    console.print(json.dumps({"results": f"{run.store.url}/results/worth.json"}), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["study", *sys.argv[1:]]))
