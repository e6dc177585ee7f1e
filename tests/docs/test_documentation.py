"""What the documentation shows works as written: recipes load, commands exist, links lead somewhere, Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel

from engine import spec as specs
from engine.spec.recipe import RunSpec

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "clusters").rglob("*.md")])


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of each fenced block of a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, text) for page in PAGES for text in pattern.findall(page.read_text())]


@pytest.mark.parametrize(("page", "text"), blocks("yaml"), ids=lambda v: v[:30] if isinstance(v, str) else None)
def test_recipes_load(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    if not re.search(r"^name:", text, re.MULTILINE):
        text = "name: part\nsource: {kind: digits}\n" + text if "source:" not in text else "name: part\n" + text
    path.write_text(text)
    assert isinstance(specs.load(path), RunSpec)


def commands() -> list[tuple[str, str]]:
    lines = [(page, line.split("#")[0].strip()) for page, text in blocks("bash") for line in text.splitlines()]
    return [(page, line) for page, line in lines if line.startswith("mimeo ")]


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda v: v[:40])
def test_commands_exist(page: str, line: str) -> None:
    from pipelines.cli import app

    group: Any = typer.main.get_command(app)
    verb, *arguments = shlex.split(line)[1:]
    context = group.commands[verb].make_context(verb, arguments)  # raises on an unknown option or a missing argument
    for override in context.params.get("set_") or ():
        specs.load(ROOT / "pipelines/recipes/quickstart.yaml", [override])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {t for page in PAGES for t in re.findall(r"make ([a-z-]+)", page.read_text())}
    assert named & {"quickstart", "test"} == {"quickstart", "test"}
    assert {t for t in named if t in {"help", "install", "quickstart", "test", "check", "bench"}} <= set(targets)


def test_every_setting_is_documented() -> None:
    """docs/recipes.md names each key of the spec with its section; what a kind of source takes is in its row."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    named = [key.replace("evaluate.sets.", "evaluate.sets.NAME.") for key in settings(RunSpec)]
    assert "worth.seeds" in named
    assert not [key for key in named if f"`{key}`" not in text]


def settings(model: type[BaseModel], above: str = "") -> list[str]:
    """Dotted names of every setting, those of sections that are left out included."""
    out = []
    for name, field in model.model_fields.items():
        inner = [one for one in sections(field.annotation) if name != "source"]
        out += [key for one in inner for key in settings(one, f"{above}{name}.")] or (
            [] if name == "source" else [above + name]
        )
    return out


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [one for part in get_args(annotation) for one in sections(part)]
