"""The few options that verbs share."""

from __future__ import annotations

import math
from typing import Annotated

import typer


def finite(value: float | None) -> float | None:
    """Refuse infinity and NaN, which pass any range that has one end."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is not a finite number")
    return value


Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML recipe, or the name of one in pipelines/recipes.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as generate.count=1000; repeatable."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="URL",
        help="Where the run lives: a folder, or s3://, gs://, az://. Default: runs/NAME.",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="SECONDS",
        min=0,
        callback=finite,
        help="Stop cleanly after so long; the same command goes on.",
    ),
]
Url = Annotated[str, typer.Argument(metavar="URL", help="The output of a run.")]
Price = Annotated[
    float | None,
    typer.Option(
        "--price-per-hour",
        metavar="PRICE",
        min=0,
        callback=finite,
        help=(
            "Price of one device-hour (a GPU, or a CPU core), in any currency. Default: "
            "resources.price_per_hour of the run's first recipe."
        ),
    ),
]
