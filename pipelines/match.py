"""`mimeo match`: fine-tune the generator on the training images by distribution matching."""

from __future__ import annotations

from engine.errors import ConfigError
from pipelines.context import load_recipe
from pipelines.options import Output, Recipe, Set, TimeLimit
from pipelines.verbs import verb


def main(recipe: Recipe, set_: Set = None, output: Output = None, time_limit: TimeLimit = None) -> None:
    """Fine-tune the generator on the training images by distribution matching (LoRA + MMD)."""
    if load_recipe(recipe, set_).match is None:
        raise ConfigError(recipe, "has no match section", "add one, such as --set match.steps=1000")
    verb("match", recipe, set_, output, time_limit)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["match", *sys.argv[1:]]))
