"""`mimeo run`: the main job, from real images to shards, classifiers and a report."""

from __future__ import annotations

from engine import output as tree
from engine.cluster.terminal import Terminal
from pipelines.options import Output, Recipe, Set, TimeLimit
from pipelines.verbs import verb


def main(recipe: Recipe, set_: Set = None, output: Output = None, time_limit: TimeLimit = None) -> None:
    """Run the main job: real images in, verified synthetic shards, classifiers and a report out."""
    run = verb("report", recipe, set_, output, time_limit)
    if run is None:
        return
    from engine.evaluation.plainly import sentences
    from engine.evaluation.run_summary import read, table

    judged = read(run.store)
    if judged is None:
        return
    console = Terminal()
    console.print(table(judged))
    for sentence in sentences(judged):
        console.print(sentence, highlight=False)
    console.print(
        f"report: {run.store.local(tree.REPORT) or f'{run.store.url}/{tree.REPORT}'}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"next: open the report, then mimeo verify {run.store.url}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["run", *sys.argv[1:]]))
