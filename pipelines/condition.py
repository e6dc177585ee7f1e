"""`mimeo condition`: captions, CLIP features and class statistics for each training image."""

from __future__ import annotations

from pipelines.options import Output, Recipe, Set
from pipelines.verbs import verb


def main(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """Compute captions, CLIP features and class statistics for each training image."""
    verb("features", recipe, set_, output)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["condition", *sys.argv[1:]]))
