"""Recipes that no run can be made of: paths, sizes, numbers, overrides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_inputs.attacks import Attack, check_attack

DIGITS = "name: bad\nimages: {size: 8}\nsource: {kind: digits}\n"


def plan(name: str, *settings: str, codes: tuple[int, ...] = (2,), says: tuple[str, ...] = ()) -> Attack:
    """A row: `mimeo plan quickstart` with settings."""
    changes = tuple(word for setting in settings for word in ("--set", setting))
    return Attack(name, ("plan", "quickstart", *changes), codes, says)


PATHS = [
    plan("source path unknown user", "source={kind: folder, path: ~nobody-here/x}", codes=(2, 3), says=("user",)),
    plan("lora name too long", f"model.lora=/{'l' * 300}.safetensors", says=("model.lora",)),
    plan("features path unknown user", "conditions.features={backend: transformers, path: ~nobody-here/x}"),
    Attack("recipe path 300 chars", ("plan", "r" * 300), (2,), ("no such recipe",)),
    Attack("recipe path 5000 chars", ("plan", "r" * 5000), (2,), ("no such recipe",)),
]


@pytest.mark.parametrize("attack", PATHS, ids=lambda attack: attack.name)
def test_paths(attack: Attack, tmp_path: Path) -> None:
    check_attack(attack, tmp_path)
