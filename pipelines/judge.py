"""`mimeo judge`: train classifiers on real, synthetic and mixed data and compare them."""

from __future__ import annotations

from pipelines.options import Output, Recipe, Set
from pipelines.verbs import verb


def main(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """Train classifiers on real, synthetic and mixed data and compare them on the test split."""
    verb("judge", recipe, set_, output)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["judge", *sys.argv[1:]]))
