"""Keys and tokens never travel: what Ray's own packer takes of a folder full of them, and what ray up and an image
build are told."""

from __future__ import annotations

import json
import logging
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from pathspec import GitIgnoreSpec

from engine.cluster import jobs, upload
from pipelines.cli import execute
from tests.support.clusterfiles import CLUSTERS, REMOVE, ROOT, planted

CODE = ("recipe.yaml", "engine/key.py", "engine/keys/token.py", "environment.yml", "README.md", "docs/pem.md")
SECRETS = (
    ".env",
    ".env.local",
    "prod.env",
    "deep/down/.env",
    ".aws/credentials",
    "home/.aws/config",
    ".ssh/config",
    ".ssh/id_ed25519",
    "id_rsa",
    "id_rsa.pub",
    "server.pem",
    "certs/tls.key",
    ".netrc",
    ".git/config",
    ".config/gcloud/application_default_credentials.json",
    ".kube/config",
    ".docker/config.json",
    "credentials.json",
    "service-account-7.json",
    "secrets.yaml",
    "cluster.token",
    ".mimeo/ray-token",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with code and secrets, a .rayignore that asks for them all, and a link to a key elsewhere."""
    made = tmp_path / "project"
    for name in (*CODE, *SECRETS):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(f"canary {name}")
    (made / ".rayignore").write_text("README.md\n" + "".join(f"!{name}\n" for name in SECRETS))
    (tmp_path / "home/.ssh").mkdir(parents=True)
    (tmp_path / "home/.ssh/work").write_text("canary of a link")
    (made / "harmless").symlink_to(tmp_path / "home/.ssh/work")
    (made / "folder").symlink_to(tmp_path / "home/.ssh")
    return made


def test_what_ray_packs_holds_no_secret(folder: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import _zip_files

    job = jobs.make(["run"], ["recipe.yaml"], working_dir=folder, metadata={})
    target = tmp_path / "sent.zip"
    quiet = logging.getLogger("quiet")
    _zip_files(str(folder), job.runtime_env["excludes"], str(target), include_gitignore=True, logger=quiet)
    with zipfile.ZipFile(target) as packed:
        names = {name for name in packed.namelist() if not name.endswith("/")}
        assert not [name for name in names if b"canary of a link" in packed.read(name)]
    assert names == {*CODE, ".rayignore"} - {"README.md"}
    assert job.upload.files == len(names)
    assert job.upload.bytes == sum((folder / name).stat().st_size for name in names)
    env = json.loads(job.command("http://h:8265").partition("--runtime-env-json '")[2].partition("'")[0])
    assert env["excludes"] == job.runtime_env["excludes"]  # the command that is shown keeps the same back


def test_what_is_kept_back_is_told(folder: Path) -> None:
    kept = upload.survey(folder).kept
    assert {"harmless", "folder", ".env", ".aws", "server.pem", "deep/down/.env"} <= set(kept)
    assert not [name for name in SECRETS if not any(name == one or name.startswith(f"{one}/") for one in kept)]


def test_the_ignore_files_of_this_project_name_the_same() -> None:
    sent = GitIgnoreSpec.from_lines((ROOT / ".rayignore").read_text().splitlines())
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    image = GitIgnoreSpec.from_lines(line for line in lines if not line.startswith("#"))
    for name in SECRETS:
        assert sent.match_file(name), name
        assert image.match_file(name), name
    for name in ("engine/cluster/upload.py", "pipelines/cli.py", "pyproject.toml", "constraints.txt", "README.md"):
        assert not sent.match_file(name), name
        assert not image.match_file(name), name
    assert set(upload.NEVER) <= set((ROOT / ".rayignore").read_text().splitlines())
    assert {f"**/{pattern.rstrip('/')}" for pattern in upload.NEVER} <= set(lines)


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "azure.yaml"])
def test_a_ray_up_file_that_sends_the_folder_whole_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert yaml.safe_load((CLUSTERS / name).read_text())["rsync_filter"] == [".rayignore"]
    assert execute(["cluster", str(planted(name, "rsync_filter", REMOVE, tmp_path))]) == 2
    assert "rsync_filter: lacks .rayignore: . would be sent with .env" in capsys.readouterr().out


class Answering(BaseHTTPRequestHandler):
    """As much of a job server as tells whether it asks for a token."""

    open_to_all = True

    def do_GET(self) -> None:
        known = self.open_to_all or "Bearer" in (self.headers.get("Authorization") or "")
        version = {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}
        self.send_response(200 if known or self.path == "/api/version" else 401)
        self.end_headers()
        self.wfile.write(json.dumps(version if self.path == "/api/version" else []).encode())

    def do_PUT(self) -> None:
        self.send_response(500)
        self.end_headers()

    do_POST = do_PUT

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize(("opens", "allowed"), [(True, False), (True, True), (False, False)])
def test_a_cluster_that_asks_for_no_token_gets_nothing(
    folder: Path, opens: bool, allowed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (folder / "recipe.yaml").write_text("name: toy\nsource: {kind: digits}\n")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("_", (Answering,), {"open_to_all": opens}))
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    words = ["submit", str(folder / "recipe.yaml"), "--cluster", url, "--output", "/tmp/mimeo-none"]
    words += ["--working-dir", str(folder), *(["--open-cluster"] if allowed else [])]
    code = execute(words)
    server.shutdown()
    said = capsys.readouterr()
    assert code == 6
    assert "keeps back, as they may hold secrets: .aws, .config/gcloud, .docker, .env" in said.out
    refused = f"error: {url}: asks for no token" in said.err
    assert refused == (opens and not allowed)  # else it goes on, to an upload that this server does not take
