"""`mimeo submit`: run a verb as a job of a Ray cluster, follow its log, and end with its exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.cluster.terminal import say
from engine.errors import ClusterError, ConfigError
from pipelines.options import Output, Recipe, Set, finite

Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="The cluster's dashboard, such as http://127.0.0.1:8265.",
    ),
]
Verb = Annotated[
    str, typer.Option("--verb", help="What to run: any verb that takes a recipe, such as 'study ablation'.")
]
Folder = Annotated[
    Path, typer.Option("--working-dir", metavar="FOLDER", help="Sent to the cluster, less what .rayignore names.")
]
Install = Annotated[
    bool, typer.Option("--install", help="The cluster's image lacks the packages: install them for this job by pip.")
]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Follow the log to the end, or leave once it is submitted.")
]
Open = Annotated[
    bool, typer.Option("--open-cluster", help="Submit to a cluster that asks for no token, where anybody can run code.")
]
Cpus = Annotated[
    float,
    typer.Option("--driver-cpus", min=0, callback=finite, help="CPUs of a node to reserve for the driver itself."),
]

SHOWN = 20
NO_JOB = ("submit", "cluster", "doctor", "quickstart", "verify", "status")


def main(
    recipe: Recipe,
    cluster: Cluster,
    verb: Verb = "run",
    set_: Set = None,
    output: Output = None,
    working_dir: Folder = Path(),
    install: Install = False,
    wait: Wait = True,
    driver_cpus: Cpus = 0.0,
    open_cluster: Open = False,
) -> int:
    """Run a verb as a job of a Ray cluster, follow its log, and end with its exit code."""
    from engine.cluster import jobs
    from engine.spec import spec_hash
    from engine.storage.urls import normalise
    from pipelines.context import check, load_recipe

    words = verb.split()
    if not words or words[0] in NO_JOB:
        raise ConfigError(
            "--verb", f"{verb!r} is no verb for a cluster", "use run, generate, match, train, search, ..."
        )
    if output is None or ("://" not in output and not output.startswith("/")):
        fix = "use s3://, gs://, az://, or the absolute path of a disk that every node sees"
        raise ConfigError("--output", f"{output or 'a default'} would lie in the job's own folder and go with it", fix)
    spec = load_recipe(recipe, set_)
    check(spec)
    folder = working_dir.resolve()
    arguments = [_recipe(recipe, folder), "--output", normalise(output)]
    for change in set_ or ():
        arguments += ["--set", change]
    metadata = {"mimeo_name": spec.name, "mimeo_spec": spec_hash(spec), "mimeo_output": output, "mimeo_verb": verb}
    job = jobs.make(words, arguments, working_dir=folder, metadata=metadata, install=install, driver_cpus=driver_cpus)
    say(f"$ {job.command(cluster)}")
    say(f"sends {job.upload.files:,} files of {folder}, {job.upload.bytes / 2**20:.1f} MiB")
    if job.upload.kept:
        more = f" and {len(job.upload.kept) - SHOWN:,} more" if len(job.upload.kept) > SHOWN else ""
        say(f"keeps back, as they may hold secrets: {', '.join(job.upload.kept[:SHOWN])}{more}")
    connection = jobs.client(cluster)
    if not open_cluster and not jobs.asks_for_token(connection, cluster):
        fix = "start it with RAY_AUTH_MODE=token, or say --open-cluster where nobody else can reach it"
        raise ClusterError(cluster, "asks for no token: whoever reaches it can run code and read what is sent", fix)
    job_id = jobs.submit(job, connection, cluster)
    say(f"job {job_id} is submitted; ray job stop {job_id} ends it, the same command goes on")
    if not wait:
        return 0
    return jobs.follow(connection, job_id, cluster, lambda text: say(text, end=""))


def _recipe(recipe: str, folder: Path) -> str:
    """The recipe's name as the job sees it: a packaged one, or a file inside the folder that is sent."""
    path = Path(recipe)
    if not path.exists():
        return recipe
    if not path.resolve().is_relative_to(folder):
        raise ConfigError(
            recipe, f"lies outside the folder that is sent, {folder}", "copy it there, or set --working-dir"
        )
    return str(path.resolve().relative_to(folder))


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["submit", *sys.argv[1:]]))
