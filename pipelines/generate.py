"""`mimeo generate`: draw the synthetic set into verified WebDataset shards."""

from __future__ import annotations

from pipelines.options import Output, Recipe, Set
from pipelines.verbs import verb


def main(recipe: Recipe, set_: Set = None, output: Output = None) -> None:
    """Draw the synthetic set into verified WebDataset shards."""
    verb("generate", recipe, set_, output)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["generate", *sys.argv[1:]]))
