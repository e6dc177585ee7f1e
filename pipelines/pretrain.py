"""`mimeo pretrain`: train the closed-set generator (CLIP, VAE, U-Net) on the training images alone."""

from __future__ import annotations

from pipelines.options import Output, Recipe, Set, TimeLimit
from pipelines.verbs import verb


def main(recipe: Recipe, set_: Set = None, output: Output = None, time_limit: TimeLimit = None) -> None:
    """Train the closed-set generator (CLIP, VAE, U-Net) from scratch on the training images alone."""
    verb("pretrain", recipe, set_, output, time_limit)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["pretrain", *sys.argv[1:]]))
