"""Class numbers from class numbers and class names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from engine.images import labels
from engine.images.decode import BadImage
from engine.images.labels import Labels, check_names, class_order, near_match, parse_label, same_but_spelling


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


def test_a_test_set_adds_no_class() -> None:
    made = Labels(None)
    assert made.code("cat") == 0
    assert (made.code("dog", learn=False), made.code("cat", learn=False)) == (None, 0)
    assert made.classes()[0] == ("cat",)


def test_a_number_and_its_text_are_one_class() -> None:
    assert numbered(Labels(None), [7, "7", "10", 10, "07"]) == (("07", "7", "10"), [1, 1, 2, 2, 0])


@given(st.permutations([*map(str, range(120)), "2.5", "-3", "010", "cat", "1e3"]))
def test_numbers_are_ordered_by_value_whatever_the_order_of_arrival(names: list[str]) -> None:
    numbers = sorted((n for n in names if n not in ("cat", "1e3")), key=lambda n: (float(n), n))
    assert sorted(names, key=class_order) == [*numbers, "1e3", "cat"]
    assert numbered(Labels(None), list(names))[0] == (*numbers, "1e3", "cat")


def test_numbers_as_names_that_are_no_positions_are_refused() -> None:
    made = Labels(("1", "2", "4"), chosen=True)
    assert [made.code(name) for name in ("1", "4")] == [0, 2]
    for label in (1, 2, 4, 0):
        with pytest.raises(DataError, match="may be a name or a position"):
            made.code(label)
    assert [Labels(("0", "1"), chosen=True).code(label) for label in (0, 1, 2)] == [0, 1, None]
    assert Labels(("1", "2", "4")).code(1) == 1  # names that the data declares


@pytest.mark.parametrize(
    ("name", "near", "same"),
    [
        ("Cat", "cat", True),
        ("golden retriever", "golden_retriever", True),
        ("ca t", "cat", True),
        ("cats", "cat", False),
        ("\uff43\uff41\uff54", "cat", True),
        ("zebra", None, False),
    ],
)
def test_near_matches(name: str, near: str | None, same: bool) -> None:
    known = ("cat", "dog", "golden_retriever")
    assert (near_match(name, known), same_but_spelling(name, known)) == (near, same)


def test_an_identifier_column_is_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MAX_CLASSES", 50)
    made = Labels(None)
    with pytest.raises(DataError, match="more than 50 different labels"):
        [made.code(value) for value in range(51)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (3.0, 3),
        ("cat", "cat"),
        (" cat ", "cat"),
        ("007", "007"),
        (-1, "no_label"),
        (True, "bad_label"),
        (1.5, "bad_label"),
        (float("nan"), "bad_label"),
        ("", "bad_label"),
        ([1], "bad_label"),
        (None, "bad_label"),
    ],
)
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
