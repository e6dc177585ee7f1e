"""Verbs as jobs of a Ray cluster: what is sent along, the command that does the same, logs to the end, the verb's exit
code."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from packaging.requirements import Requirement

from engine.cluster import authentication, upload
from engine.cluster.upload import Upload
from engine.errors import ClusterError, ConfigError, MimeoError

ANSWER_S = 30
STOP_S = 60  # between `ray job stop` and a kill: a run has its lock to give back
STOPPED = 143
_CREATED = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"


class PipEnv(TypedDict):
    """What pip installs into a job's environment."""

    packages: list[str]
    pip_check: bool


class RuntimeEnv(TypedDict):
    """The environment of a job, by Ray's names."""

    working_dir: str
    excludes: list[str]
    env_vars: dict[str, str]
    pip: NotRequired[PipEnv]


@dataclass(frozen=True)
class Job:
    """One verb as a job: its command line, the folder that is sent along, what is noted beside it, and its
    environment."""

    entrypoint: str
    working_dir: Path
    metadata: dict[str, str]
    runtime_env: RuntimeEnv
    driver_cpus: float
    upload: Upload

    def command(self, address: str) -> str:
        """The `ray job submit` command that does the same."""
        env = {key: value for key, value in self.runtime_env.items() if key != "working_dir"}
        words = ["ray", "job", "submit", "--address", address, "--working-dir", str(self.working_dir)]
        words += ["--runtime-env-json", json.dumps(env), "--metadata-json", json.dumps(self.metadata)]
        words += ["--entrypoint-num-cpus", f"{self.driver_cpus:g}"] if self.driver_cpus else []
        return f"RAY_AUTH_MODE=token {shlex.join(words)} -- {self.entrypoint}"


def make(
    verb: Sequence[str],
    arguments: Sequence[str],
    *,
    working_dir: Path,
    metadata: dict[str, str],
    install: bool = False,
    driver_cpus: float = 0.0,
) -> Job:
    """The job that runs `mimeo VERB ARGUMENTS` with `working_dir` as its folder.

    `install`: the cluster's image has no mimeo; its requirements are installed by pip into the job's environment, under
    the constraints file of the working folder. Raises ConfigError where the folder is too large or has no constraints
    file.
    """
    sent = upload.survey(working_dir)
    env: RuntimeEnv = {
        "working_dir": str(working_dir),
        "excludes": sent.excludes,
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), "PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
    }
    if install:
        env["pip"] = {"packages": _requirements(working_dir), "pip_check": False}
    words = ["python", "-m", "pipelines.cli", *verb, *arguments]
    if (working_dir / "pipelines" / f"{verb[0]}.py").is_file():
        words = ["python", "-m", f"pipelines.{verb[0]}", *verb[1:], *arguments]
    return Job(shlex.join(words), working_dir, metadata, env, driver_cpus, sent)


def client(address: str) -> Any:
    """A connection to the cluster's job server; ClusterError in one line where it refuses or does not answer.

    ConfigError for a RAY_AUTH_MODE that Ray does not know.
    """
    authentication.check_mode()
    with _quiet():
        from ray.job_submission import JobSubmissionClient

        return _told(address, lambda: JobSubmissionClient(address))


def asks_for_token(connection: Any, address: str) -> bool:
    """Whether the cluster refuses who has no token; one that does not runs anybody's code, and shows what a job is sent
    with."""
    import requests

    def knock() -> int:
        url = f"{connection.get_address()}/api/jobs/"
        return requests.get(url, timeout=ANSWER_S, verify=connection._verify, allow_redirects=False).status_code

    return int(_told(address, knock)) != requests.codes.ok


def submit(job: Job, connection: Any, address: str) -> str:
    """Send the job; returns its id."""
    name = f"mimeo-{job.metadata.get('mimeo_name', 'job')}-{secrets.token_hex(4)}"
    with _quiet():
        return str(
            _told(
                address,
                lambda: connection.submit_job(
                    entrypoint=job.entrypoint,
                    submission_id=name,
                    runtime_env=job.runtime_env,
                    metadata=job.metadata,
                    entrypoint_num_cpus=job.driver_cpus or None,
                ),
            )
        )


def follow(connection: Any, job_id: str, address: str, say: Callable[[str], None]) -> int:
    """Say the job's log as it comes and return the exit code of its command, 143 where it was stopped."""

    async def tail() -> None:
        async for text in connection.tail_job_logs(job_id):
            say(text)

    with _quiet():
        _told(address, lambda: asyncio.run(tail()))
        details = _told(address, lambda: connection.get_job_info(job_id))
    status = details.status.value
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return STOPPED
    if details.driver_exit_code is None:
        message = " ".join((details.message or "no reason was given").split())[:300]
        raise ClusterError(f"job {job_id}", f"{status.lower()}: {message}", f"see ray job logs {job_id}")
    return int(details.driver_exit_code)


def _requirements(folder: Path) -> list[str]:
    """What pip installs for a job: the distribution's requirements less Ray, which the cluster has, under the pins."""
    if not (folder / "constraints.txt").is_file():
        raise ConfigError(
            f"{folder}/constraints.txt", "is missing, and --install takes its pins from it", "copy it there"
        )
    found = [Requirement(text) for text in importlib.metadata.requires("mimeo") or ()]
    needed = [str(r) for r in found if r.name != "ray" and (r.marker is None or r.marker.evaluate({"extra": ""}))]
    return [f"-c {_CREATED}/constraints.txt", *needed]


def _told(address: str, call: Callable[[], Any]) -> Any:
    """What `call` returns; what Ray and the network raise as one line."""
    try:
        return call()
    except MimeoError:
        raise
    except Exception as error:
        raise _error(address, error) from None


def _error(address: str, error: Exception) -> ClusterError:
    from ray.exceptions import AuthenticationError

    text = " ".join(str(error).split())
    if isinstance(error, AuthenticationError) or "401" in text or "403" in text or "Unauthenticated" in text:
        refused = "does not accept the token" if "403" in text or "nvalid" in text else "asks for a token"
        return ClusterError(
            address, f"the cluster {refused}", "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its file"
        )
    if "version" in text.lower() and "mismatch" in text.lower():
        return ClusterError(address, text[:300], "use the cluster's version of Ray here")
    return ClusterError(address, f"no job server answers ({text[:200]})", "check the address, or forward its port 8265")


class _quiet:
    """Ray's own lines about uploads and addresses stay away while the block runs."""

    def __enter__(self) -> None:
        self._disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._disabled)
