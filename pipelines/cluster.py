"""`mimeo cluster`: check cluster files before they cost anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.cluster.terminal import say


def main(
    files: Annotated[list[Path], typer.Argument(help="Files for `ray up` or KubeRay, such as clusters/aws.yaml.")],
) -> None:
    """Check cluster files offline: fields, limits, versions, tokens, open ports, keys; exit code 2 when one has a
    problem."""
    from engine.cluster.files import check

    failed = False
    for path in files:
        findings = check(path)
        for problem in findings.problems:
            say(str(problem))
        for advice in findings.advice:
            say(f"advice: {advice}")
        if findings.problems:
            failed = True
        else:
            say(f"ok: {path} ({', '.join(findings.kinds)})")
    if failed:
        raise typer.Exit(2)


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["cluster", *sys.argv[1:]]))
