"""`mimeo equivalence`: how many synthetic images are worth n real ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from engine import output as tree
from engine.cluster.terminal import Terminal
from pipelines.context import open_run
from pipelines.options import Output, Recipe, Set

if TYPE_CHECKING:
    from engine.study.studyresults import EquivalenceResult

Against = Annotated[
    list[str] | None,
    typer.Option(
        "--against", metavar="URL", help="The output of another finished study for the same figure; repeatable."
    ),
]


def main(recipe: Recipe, set_: Set = None, output: Output = None, against: Against = None) -> None:
    """How many synthetic images are worth n real ones: generators, classifiers, a fit with intervals, and what to do
    next."""
    from engine.study.equivalence.equivalence_plan import check

    others = [_finished(url) for url in against or ()]
    with open_run(recipe, set_, output, "equivalence", lambda spec, _: check(spec)) as run:
        from engine.cluster.session import session
        from engine.images import catalog
        from engine.report.equivalence_page import figure, markdown, table
        from engine.study.equivalence.equivalence_plan import cells
        from engine.study.equivalence.equivalence_run import equivalence

        if all(run.store.exists(cell.name) for cell in cells(run.spec)):
            run.reporter.note(f"nothing to run: {run.store.url} holds every cell")
            result = equivalence(run.spec, catalog.load(run.store), run.store, run.reporter)
        else:
            run.reporter.note("starting Ray ...")
            with session(run.spec.resources, store=run.store):
                made = catalog.build(run.spec, run.store, run.reporter)
                result = equivalence(run.spec, made, run.store, run.reporter)
        run.store.replace(tree.beside(tree.EQUIVALENCE, "md"), markdown(result).encode())
        run.store.replace(tree.beside(tree.EQUIVALENCE, "svg"), figure([result, *others]))
    console = Terminal()
    console.print(table(result))
    for entry in result["advice"]:
        console.print(entry["text"])
    facts = {
        "results": f"{run.store.url}/results/equivalence.json",
        "figure": f"{run.store.url}/results/equivalence.svg",
    }
    console.print(json.dumps(facts), soft_wrap=True, highlight=False)


def _finished(url: str) -> EquivalenceResult:
    """The result of another study."""
    from engine.errors import ConfigError
    from engine.storage import documents
    from engine.storage.store import open_store
    from engine.study.equivalence.equivalence_run import RESULT
    from engine.study.studyresults import EquivalenceResult

    found = documents.find(open_store(url), RESULT, EquivalenceResult)
    if found is None:
        raise ConfigError("--against", f"{url} holds no finished equivalence study", "give the output of one")
    return found


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["equivalence", *sys.argv[1:]]))
