"""What a person is shown: secrets of URLs and of the environment, and characters that a terminal obeys, never are."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.text import LONGEST, one_line, printable, redacted, shortened, shown

SECRET = "s3cr/t+x%3D"
URLS = (
    "az://c/p.tar?sv=2022-11-02&sig={}&se=2026",
    "s3://AKIAEXAMPLE:{}@bucket/photos",
    "s3:/AKIAEXAMPLE:{}@bucket/photos",
    "https://user:{}@host:8443/x.tar",
    "https://host/x.tar?X-Amz-Credential=AKIA&X-Amz-Signature={}",
    "http://admin:{}@127.0.0.1:8265",
    "admin:{}@127.0.0.1:8265",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={};EndpointSuffix=x",
    "aws_secret_access_key = {}",
    "Authorization: Bearer {}",
    "Authorization: {}",
    '{{"password": "{}"}}',
)


@pytest.mark.parametrize(
    "around", ["{}", "cannot read {}: refused", "'{}'", "({})", "[{}, x]", "--cluster={}", "a: 'x' -> '{}'"]
)
@pytest.mark.parametrize("url", URLS)
def test_secrets_are_not_shown(url: str, around: str) -> None:
    text = around.format(url.format(SECRET))
    assert SECRET in text
    assert SECRET not in redacted(text)
    assert SECRET not in str(ConfigError(text, text, text))


@pytest.mark.parametrize(
    "text",
    [
        "generate.visual_token: 'own' -> 'none'",
        "s3://bucket/part-??.tar fits no file",
        "hub://owner/set@main",
        "user@host wrote 3 files at 12:30",
        "http://127.0.0.1:8265: no job server answers",
        "passed: 3; tokens: 77; a = b",
        "/home/me/photos@2x/a=b.png",
        "C:\\x y",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert redacted(text) == text.replace("owner/set@", "owner/set@")


def test_values_of_secret_variables_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token-file")
    monkeypatch.setenv("HF_TOKEN", "short")
    text = "wJalrXUtnFEMI/K7MDENG in /home/me/token-file is short"
    assert redacted(text) == "*** in /home/me/token-file is short"


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    """By the Unicode categories of control, format and surrogate characters, which are not what `printable` asks."""
    for c in printable(text).replace("\n", ""):
        assert unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp"), repr(c)
        assert unicodedata.category(c) != "Cf" or c in "\u200c\u200d", repr(c)
    printable(text).encode()


@given(st.text(st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S", "Zs"))))
def test_what_is_printed_is_left_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert printable("👩‍👧 می‌روم") == "👩‍👧 می‌روم"


def test_an_error_is_one_short_line() -> None:
    error = str(ConfigError("\x1b[2J" * 5000, "a\nb\u2028c\x85d\u202e", "x" * 100_000))
    assert error.startswith("\\x1b[2J")
    assert "a b c d\\u202e" in error
    assert len(error) < 4 * LONGEST
    assert "\n" not in error


def test_shortening_keeps_both_ends() -> None:
    text = "".join(map(str, range(1000)))
    assert shortened(text, len(text)) == text
    cut = shortened(text, 90)
    assert cut.startswith(text[:60])
    assert cut.endswith(text[-30:])


@pytest.mark.parametrize("part", ["a:", ":@", "a", "@", "?", "(", "password ", "?a", ";", "://", "a/", "\x1b"])
def test_time_grows_with_the_length_only(part: str) -> None:
    text = part * (400_000 // len(part))
    began = time.process_time()
    shown(text + "@x?y=z")
    one_line("x" + text)
    assert time.process_time() - began < 3
