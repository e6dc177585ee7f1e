"""Prompts: templates filled with hostile and odd names, nothing left dangling."""

import pytest

from engine.conditions import prompts

TEMPLATE = "photo of {class}, {caption}"


@pytest.mark.parametrize(
    ("template", "caption", "expected"),
    [
        (TEMPLATE, "a man holding a fish", "photo of tench, a man holding a fish"),
        (TEMPLATE, "", "photo of tench"),
        (TEMPLATE, "  \n ", "photo of tench"),
        (TEMPLATE + ", best quality", "", "photo of tench, best quality"),
        ("{caption}, photo of {class}", "", "photo of tench"),
        ("photo of {class} ({caption})", "", "photo of tench"),
        ("photo of {class} [ {caption} ], sharp", "", "photo of tench, sharp"),
        ("photo of {class} ({caption})", "blue", "photo of tench (blue)"),
        ("{class}: {caption}.", "", "tench."),
        ("a {caption} {class}", "", "a tench"),
        ("photo", "blue", "photo"),
        ("{class} and {class}", "blue", "tench and tench"),
    ],
)
def test_template_is_filled(template: str, caption: str, expected: str) -> None:
    assert prompts.fill(template, "tench", caption) == expected


def test_user_text_is_not_read_as_a_template() -> None:
    assert prompts.fill(TEMPLATE, "{caption}", "{class} {0.__class__}") == "photo of {caption}, {class} {0.__class__}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("great_white_shark", "great white shark"),
        ("7", "7"),
        (" a__b\n c", "a b c"),
        ("_", "_"),
        ("T-shirt", "T-shirt"),
    ],
)
def test_class_names_become_words(name: str, expected: str) -> None:
    assert prompts.clean_class_name(name) == expected


def test_fill_all_goes_by_label() -> None:
    assert prompts.fill_all(TEMPLATE, ("cat", "sea_lion"), [1, 0], ["", "wet"]) == (
        "photo of sea lion",
        "photo of cat, wet",
    )


@pytest.mark.parametrize(
    "template", ["{class}", " a photo of {class}, {caption}", "{caption} ({class})", "{class} or {class}s"]
)
@pytest.mark.parametrize("name", ["tench", "gold_fish", "{caption}", "\u732b"])
@pytest.mark.parametrize("caption", ["", "  a man,  holding {class} "])
def test_the_class_ends_where_it_stands_in_the_prompt(template: str, name: str, caption: str) -> None:
    prompt, words = prompts.fill(template, name, caption), prompts.clean_class_name(name)
    ends = prompts.class_ends(template, name, caption)
    assert len(ends) == template.count("{class}")
    assert all(prompt[:end].endswith(words) for end in ends)
