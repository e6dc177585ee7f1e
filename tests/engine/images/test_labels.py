"""Class numbers from class numbers and class names."""

from __future__ import annotations

import pytest

from engine.errors import DataError
from engine.images import labels
from engine.images.decode import BadImage
from engine.images.labels import Labels, check_names, parse_label


def numbered(made: Labels, values: list[int | str]) -> tuple[tuple[str, ...], list[int]]:
    codes = [made.code(value) for value in values]
    names, numbers = made.classes()
    return names, [int(numbers[code]) for code in codes if code is not None]


def test_undeclared_numbers_and_names_are_ordered() -> None:
    assert numbered(Labels(None), [10, 2, 7, 2]) == (("2", "7", "10"), [2, 0, 1, 0])
    assert numbered(Labels(None), ["10", "2", "7"]) == (("2", "7", "10"), [2, 0, 1])
    assert numbered(Labels(None), ["dog", "ant", "cat"]) == (("ant", "cat", "dog"), [2, 0, 1])


def test_declared_names_take_positions_and_names() -> None:
    made = Labels(("cat", "7", "dog"))
    assert [made.code(v) for v in (0, "dog", "7", 2, 3, "cow", 7)] == [0, 2, 1, 2, None, None, None]
    assert made.classes()[0] == ("cat", "7", "dog")


def test_a_closed_set_learns_no_class() -> None:
    made = Labels(None)
    assert made.code("cat") == 0
    made.close()
    assert (made.code("dog"), made.code("cat")) == (None, 0)


def test_an_identifier_column_is_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_CLASSES", 50)
    made = Labels(None)
    with pytest.raises(DataError, match="more than 50 different labels"):
        [made.code(value) for value in range(51)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(3, 3), (3.0, 3), ("cat", "cat"), (" cat ", "cat"), ("007", "007"), (-1, "no_label"), (True, "bad_label"),
     (1.5, "bad_label"), (float("nan"), "bad_label"), ("", "bad_label"), ([1], "bad_label"), (None, "bad_label")],
)  # fmt: skip
def test_parse_label(value: object, expected: object) -> None:
    made = parse_label(value)
    assert (made.reason if isinstance(made, BadImage) else made) == expected


@pytest.mark.parametrize(
    "names",
    [("a", "A"), ("é", "e\u0301"), ("a", "a "), ("", "b"), ("a\nb",), ("x" * 201,), ("rtl\u202e",), ("\udcff",)],
)
def test_names_that_two_people_read_differently_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError):
        check_names(names, "source")


def test_names_of_all_scripts_pass() -> None:
    check_names(("猫", "Hund & Katze", "αβγ", "tabby, tabby cat", "😀"), "source")
