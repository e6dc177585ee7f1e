"""Hub data sets: from a cache as huggingface_hub lays it out, from a server that speaks the Hub's protocol, and from
neither."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from PIL import Image

from engine.errors import ConfigError, DataError
from engine.images.sources import Ref, open_sets
from engine.images.sources.hub_source import NotCached, choose
from engine.spec.recipe import HubSource, ImagesSpec
from tests.support.images import picture, save

IMAGES = ImagesSpec(size=32)
RNG = np.random.default_rng(8)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ["cat", "dog"]


def parquet(n: int) -> tuple[bytes, list[bytes]]:
    data = [save(Image.fromarray(picture(RNG, 12, 12)), "PNG") for _ in range(n)]
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    table = pa.table({"image": [{"bytes": d, "path": None} for d in data], "label": [i % 2 for i in range(n)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), sink)
    return sink.getvalue().to_pybytes(), data


def cache(root: Path, files: dict[str, bytes], *, dataset: str = "me/pets") -> Path:
    """The layout of the Hub's cache: blobs by digest, snapshots of links by commit, refs by branch."""
    folder = root / f"datasets--{dataset.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs/main").write_text(COMMIT)
    for name, data in files.items():
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        link = folder / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def source(**more: object) -> HubSource:
    return HubSource(**{"kind": "hub", "dataset": "me/pets", **more})


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_parquet_from_the_cache(hub_cache: Path, revision: str | None) -> None:
    (train, data), (test, _) = parquet(8), parquet(4)
    cache(
        hub_cache,
        {"data/train-00000-of-00001.parquet": train, "data/test-00000-of-00001.parquet": test, "README.md": b"#"},
    )
    sets = open_sets(source(revision=revision, test_split="test"), IMAGES)
    for each in sets.values():
        each.check()
    assert sets[""].class_names == ("cat", "dog")
    refs = [ref for group in sets[""].scan() for ref in group]
    assert [ref.label for ref in refs] == [0, 1] * 4
    assert dict(sets[""].read([ref.place for ref in refs])) == dict(enumerate(data))
    assert sum(len(group) for group in sets["test"].scan()) == 4


def test_an_image_folder_from_the_cache(hub_cache: Path) -> None:
    files = {
        f"train/{name}/{i}.png": save(Image.fromarray(picture(RNG, 12, 12)), "PNG") for name in NAMES for i in range(3)
    }
    cache(hub_cache, files)
    made = open_sets(source(), IMAGES)[""]
    made.check()
    refs = [ref for group in made.scan() for ref in group]
    assert all(isinstance(ref, Ref) for ref in refs)  # links into the blobs are the cache's own
    read = dict(made.read([ref.place for ref in refs]))
    assert {f"train/{ref.key}": read[i] for i, ref in enumerate(refs)} == files


def test_an_image_folder_with_a_metadata_file_from_the_cache(hub_cache: Path) -> None:
    for part in ("train", "test"):
        names = [f"{i}.png" for i in range(4)]
        files = {f"{part}/{name}": save(Image.fromarray(picture(RNG, 12, 12)), "PNG") for name in names}
        rows = "".join(f"{name},{NAMES[i % 2]}\n" for i, name in enumerate(names))
        files[f"{part}/metadata.csv"] = f"file_name,label\n{rows}".encode()
        cache(hub_cache, files, dataset=f"me/{part}")
    for part in ("train", "test"):
        made = open_sets(source(dataset=f"me/{part}", split=part), IMAGES)[""]
        made.check()
        refs = [ref for group in made.scan() for ref in group]
        assert {ref.key: ref.label for ref in refs} == {f"{i}.png": NAMES[i % 2] for i in range(4)}


def test_what_is_not_cached_is_said(hub_cache: Path) -> None:
    with pytest.raises(NotCached, match="not in the local cache"):
        open_sets(source(), IMAGES)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        open_sets(source(), IMAGES, download=True)
    cache(hub_cache, {"README.md": b"only the card"})
    with pytest.raises(NotCached):
        open_sets(source(), IMAGES)
    with pytest.raises(ConfigError, match="no data set id"):
        open_sets(source(dataset="a/b/c"), IMAGES)
    with pytest.raises(NotCached):
        open_sets(source(revision="f" * 40), IMAGES)


def test_a_half_fetched_set_is_not_the_set(hub_cache: Path) -> None:
    cache(hub_cache, {"data/train-00000-of-00002.parquet": parquet(4)[0]})
    with pytest.raises(NotCached):
        open_sets(source(), IMAGES)


def test_files_of_a_split() -> None:
    pushed = [
        "README.md",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
    ]
    assert choose(pushed, "train", source()) == pushed[2:]
    assert choose(["default/train/0000.parquet", "default/test/0000.parquet"], "test", source()) == [
        "default/test/0000.parquet"
    ]
    assert choose(["b.parquet", "a.parquet"], "train", source()) == ["a.parquet", "b.parquet"]
    assert choose(["pets-train-000.tar", "pets-test-000.tar"], "train", source()) == ["pets-train-000.tar"]
    assert choose(["train/cat/1.jpg", "train/dog/1.JPG", "test/cat/2.jpg"], "train", source()) == [
        "train/cat/1.jpg",
        "train/dog/1.JPG",
    ]
    assert choose(["x.parquet", ".git/train.parquet"], "train", source()) == ["x.parquet"]
    two = ["small/train-0.parquet", "large/train-0.parquet"]
    assert choose(two, "train", source(config="small")) == ["small/train-0.parquet"]
    with pytest.raises(ConfigError, match="several configurations: large, small"):
        choose(two, "train", source())
    with pytest.raises(DataError, match="1 of 3 parts"):
        choose(["data/train-00002-of-00003.parquet"], "train", source())
    with pytest.raises(DataError, match="no Parquet, tar or image files of split 'test'"):
        choose(["data/train-0.parquet", "trainer.txt"], "test", source())


class Hub(BaseHTTPRequestHandler):
    """The few answers of huggingface.co that fetching a data set asks for."""

    files: dict[str, bytes]
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        self.asked.append(path)
        headers = {"X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
        status, data = 404, b'{"error": "Repository not found"}'
        if path.startswith("/api/datasets/me/pets/tree/"):
            listed = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in self.files.items()
            ]
            status, data = 200, json.dumps(listed).encode()
        elif path.startswith("/api/datasets/me/pets"):
            status, data = (
                200,
                json.dumps(
                    {"id": "me/pets", "sha": COMMIT, "siblings": [{"rfilename": n} for n in self.files]}
                ).encode(),
            )
        elif path.startswith("/datasets/me/pets/resolve/"):
            status, data = 200, self.files[path.split("/", 6)[6] if path.count("/") > 5 else path.rsplit("/", 1)[1]]
            headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
        if status == 404:
            headers["X-Error-Code"] = "RepoNotFound"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("Handler", (Hub,), {"files": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", handler
        made.shutdown()
        thread.join()


SCRIPT = """
import sys, time
from engine.errors import MimeoError
from engine.images.catalog import precheck
from engine.images.sources import open_sets
from engine.spec import validate
spec = validate({"name": "t", "source": {"kind": "hub", "dataset": sys.argv[1]}, "images": {"size": 32}})
started = time.monotonic()
try:
    precheck(spec)
    found = open_sets(spec.source, spec.images, download=True)[""]
    print("images", sum(len(group) for group in found.scan()), found.class_names)
except MimeoError as error:
    print(type(error).__name__, error)
    assert time.monotonic() - started < 10
assert "ray" not in sys.modules
"""


def run(endpoint: str, home: Path, dataset: str = "me/pets", offline: str = "0") -> str:
    keep = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment = {
        **keep,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, dataset], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_fetched_once_then_offline(tmp_path: Path, server: tuple[str, type[Hub]]) -> None:
    endpoint, hub = server
    hub.files.update(
        {
            "data/train-00000-of-00001.parquet": parquet(6)[0],
            "data/big-00000-of-00001.parquet": bytes(1000),
            "README.md": b"#",
        }
    )
    assert run(endpoint, tmp_path) == "images 6 ('cat', 'dog')"
    assert not any("big" in path for path in hub.asked)
    asked = len(hub.asked)
    assert run(endpoint, tmp_path, offline="1") == "images 6 ('cat', 'dog')"
    assert run(endpoint, tmp_path) == "images 6 ('cat', 'dog')"
    assert len(hub.asked) == asked
    assert "does not exist on the Hub" in run(endpoint, tmp_path, "me/none")


def test_neither_cache_nor_network_is_one_line_within_ten_seconds(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for endpoint in (refused, f"http://127.0.0.1:{silent.getsockname()[1]}"):
            said = run(endpoint, tmp_path)
            assert said.startswith("ConfigError source.dataset: me/pets is not in the local cache")
            assert "\n" not in said
