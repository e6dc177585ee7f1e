"""Strict YAML: what other readers guess at is read plainly or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.spec import yaml as strict


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e9", 1e9),
        ("1.0e9", 1e9),
        ("1E-3", 1e-3),
        (".5", 0.5),
        ("-7", -7),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("'1e9'", "1e9"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    got = strict.parse(text, "here")
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 010", "leading zero"),
        ("a: 1\na: 2", "twice"),
        ("a: &x 1\nb: *x", "anchors"),
        ("a: &x [*x]", "anchors"),
        ("--- 1\n--- 2", "more than one document"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a:\n\t- 1", "line 2"),
        ("a: 'open", "line 1"),
        ("3: x", "quotes"),
        ("[" * 3000, "nested too deeply"),
        ("a: [1", "line"),
    ],
)
def test_refusals_are_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        strict.parse(text, "r.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "binary", "large", "zero"])
def test_files_that_are_not_recipes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "r.yaml"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "binary":
            path.write_bytes(b"\xff\xfe\x00\x01" * 10)
        case "large":
            path.write_text("a: " + "x" * (1 << 20))
        case "zero":
            path = Path("/dev/zero")
    with pytest.raises(ConfigError):
        strict.read(path)


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert strict.read(path) == {"a": 1}


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcdef", min_size=1, max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN)
def test_reads_what_the_stock_writer_writes(value: object) -> None:
    """PyYAML's own dumper quotes whatever is ambiguous, so both readers must agree on its output."""
    text = pyyaml.safe_dump(value, allow_unicode=True)
    if "&id" not in text:
        assert strict.parse(text, "here") == value
