"""URLs are brought to one form, or refused with one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.storage.urls import is_remote, normalise


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/data/runs/a", "/data/runs/a"),
        ("/data//runs/./a/", "/data/runs/a"),
        ("/data/x/../a", "/data/a"),
        ("/with space/100%/ü#?*", "/with space/100%/ü#?*"),
        ("/a:b/c", "/a:b/c"),
        ("file:///data/a/", "/data/a"),
        ("FILE:///data/a", "/data/a"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3://bucket/a", "s3://bucket/a"),
        ("s3://bucket", "s3://bucket"),
        ("gs://my-bucket.org/a b", "gs://my-bucket.org/a b"),
        ("gcs://bucket/a", "gs://bucket/a"),
        ("abfs://container/a", "az://container/a"),
        ("az://container/a", "az://container/a"),
        ("memory://x/y", "memory://x/y"),
    ],
)
def test_accepted(url: str, expected: str) -> None:
    assert normalise(url) == expected
    assert normalise(expected) == expected
    assert is_remote(expected) == (not expected.startswith("/"))


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "not a path"),
        ("a\0b", "not a path"),
        ("a\nb", "not a path"),
        ("s3:/bucket/a", "slash"),
        ("s3:bucket/a", "slash"),
        ("gs:/bucket", "slash"),
        ("file:relative", "slash"),
        ("file://host/a", "names a host"),
        ("file:///a/../b", r"'\.\.' part"),
        ("s3://bucket/../x", r"'\.\.' part"),
        ("s3://bucket//x", "empty"),
        ("s3:///x", "empty"),
        ("s3://", "empty"),
        ("s3://bucket/x?versionId=1", "in it"),
        ("s3://bucket/x#y", "in it"),
        ("s3://bucket/*.tar", "in it"),
        ("s3://buc ket/x", "bucket"),
        ("s3://key:secret@bucket/x", "user name or a key"),
        ("zip://x::s3://bucket/a.zip", "chained"),
        ("simplecache::s3://bucket/a", "chained"),
        ("http://example.org/a", "scheme http is not supported"),
        ("sftp://host/a", "scheme sftp is not supported"),
        ("~nobody-of-this-name/a", "cannot be expanded"),
    ],
)
def test_refused(url: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        normalise(url)
    assert "\n" not in str(caught.value)


def test_secrets_are_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        normalise("s3://AKIA123:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
    assert "AKIA123" not in str(caught.value)


def test_relative_paths_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert normalise("runs/a") == str(tmp_path / "runs/a")
    assert normalise("../b") == str(tmp_path.parent / "b")
    assert normalise("~/runs") == "/home/someone/runs"


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_absolute_remote_or_refused(text: str) -> None:
    try:
        url = normalise(text)
    except ConfigError:
        return
    assert is_remote(url) or os.path.isabs(url)  # noqa: PTH117 - the form that os.path means
    assert normalise(url) == url
