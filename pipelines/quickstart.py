"""`mimeo quickstart`: the main job on the digits that scikit-learn embeds, with nothing to download."""

from __future__ import annotations

from pipelines import run
from pipelines.options import Output, Set


def main(set_: Set = None, output: Output = None) -> None:
    """Run the main job on 100 embedded real digits: a few minutes on two cores, nothing to download."""
    run.main("quickstart", set_, output)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["quickstart", *sys.argv[1:]]))
