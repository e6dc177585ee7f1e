"""What may be shown to a person or written to a log: no secret of a URL or the environment, no character that a
terminal obeys."""

from __future__ import annotations

import os
import re
import unicodedata

HIDDEN = "***"
LONGEST = 1000  # characters of one part of a message; what is longer loses its middle
_SHORTEST_SECRET = 8  # of a variable's value: shorter ones occur in ordinary words
_BETWEEN = re.compile(r"([\s'\"]+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,20}:/+")
_QUERY = re.compile(r"([?&;][A-Za-z0-9_.~%-]+=)[^\s&;#'\"]+")
_FIELD = re.compile(
    r"(?i)\b((?:account_?key|shared_?access_?(?:key|signature)|aws_secret_access_key|aws_session_token|passwo?r?d|"
    r"authorization|bearer)[\"']?\s{0,3}[=:\s]\s{0,3}[\"']?(?:(?:bearer|basic)\s)?)[^\s;,\"']+"
)
_VARIABLE = re.compile(r"(?:SECRET|SECRET_ACCESS_KEY|TOKEN|PASSWORD|SAS|ACCOUNT_KEY|STORAGE_KEY|CONNECTION_STRING)$")
_JOINERS = "\u200c\u200d"  # parts of words and of emoji


def redacted(text: str) -> str:
    """The text with `***` for user names and passwords of URLs, values of their queries, keys that name themselves, and
    the values of environment variables that hold secrets."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and value in text and _VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    if "@" in text:
        text = "".join(map(_without_user, _BETWEEN.split(text)))
    if "=" in text:
        text = _QUERY.sub(rf"\1{HIDDEN}", text)
    return _FIELD.sub(rf"\1{HIDDEN}", text)


def _without_user(word: str) -> str:
    """`name@` counts behind a scheme only, `name:password@` anywhere."""
    head, _, rest = word.rpartition("@")
    scheme = _SCHEME.search(head)
    start = scheme.end() if scheme else max(head.rfind(mark, 0, head.find(":")) for mark in "([{<=,") + 1
    user = head[start:]
    is_user = rest and (":" in user or (scheme and "/" not in user))
    return f"{head[:start]}{HIDDEN}@{rest}" if is_user else word


def printable(text: str) -> str:
    """The text with escapes such as `\\x1b` for control characters, those that turn the direction of text, and bytes
    that are no text; line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    if character.isprintable() or character == "\n" or character in _JOINERS:
        return True
    return unicodedata.category(character) in ("Zs", "Co", "Cn")


def shown(text: str) -> str:
    """The text as a person may see it: `redacted` and `printable`."""
    return printable(redacted(text))


def one_line(text: str) -> str:
    """`shown`, with runs of blanks and line ends as one blank."""
    return shown(" ".join(text.split()))


def shortened(text: str, longest: int = LONGEST) -> str:
    """The text, without its middle where it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    return f"{text[: longest * 2 // 3]} ... {text[-longest // 3 :]}"
