"""The structure that CONTRIBUTING promises: imports run down only, modules say what they are for and stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (
    ("text", "errors", "regular", "output", "seeds", "spec"),
    ("statistics",),
    ("storage",),
    ("cluster",),
    ("images",),
    ("diffusion",),
    ("conditions", "shards"),
    ("generation", "training"),
    ("evaluation",),
    ("run",),
    ("study",),
    ("report",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = sorted(p for folder in ("engine", "pipelines", "benchmarks") for p in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.is_relative_to(ROOT / "engine")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_engine_imports_run_down_only(path: Path) -> None:
    parts = path.relative_to(ROOT / "engine").with_suffix("").parts
    own = LEVEL.get(parts[0])
    if own is None:
        assert parts == ("__init__",)
        return
    for module in imports(path):
        assert not module.startswith("pipelines"), module
        if module.startswith("engine."):
            package = module.split(".")[1]
            if package in LEVEL:
                assert LEVEL[package] <= own, f"{path.relative_to(ROOT)} imports {module}, which lies above"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_say_what_they_are_for_and_stay_small(path: Path) -> None:
    text = path.read_text()
    doc = ast.get_docstring(ast.parse(text)) or ""
    assert doc.splitlines(), "no module docstring"
    assert text.count("\n") < 400


DOOR = ROOT / "engine/cluster/terminal.py"


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p != DOOR and not p.is_relative_to(ROOT / "benchmarks")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_one_module_writes_to_the_terminal(path: Path) -> None:
    """Secrets and control characters are kept from it there, so nothing may pass beside it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            bare = isinstance(node.func, ast.Name)
            assert name not in ("echo", "secho", "Console"), f"line {node.lineno}"
            assert not (bare and name == "print"), f"line {node.lineno}"


def test_light_modules_import_neither_torch_nor_ray() -> None:
    code = (
        "import sys\n"
        "import engine.spec, engine.storage.store, engine.storage.claim, engine.shards.verification, "
        "engine.shards.shard_status, engine.images.sources\n"
        "import engine.generation.sample_plan, engine.conditions.table, pipelines.cli\n"
        "print(sorted(m for m in ('torch', 'ray', 'diffusers', 'transformers', 'sklearn') if m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


def test_a_file_name_appears_once() -> None:
    counts = Counter(path.name for folder in ("engine", "pipelines") for path in (ROOT / folder).rglob("*.py"))
    assert [name for name, count in counts.items() if count > 1] == ["__init__.py"]


TREE = re.compile(
    r"^(results|catalog|conditions|model|match|trials|usage|checkpoints|data)/[\w.{*]|^/?(manifest|quarantine|report)[.](json|parquet|html)$"
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_names_below_an_output_stand_in_one_module(path: Path) -> None:
    """Text that begins a path of the output tree, and is no sentence, no glob of sources and no docstring."""
    if path.name == "output.py" or "benchmarks" in path.parts or "sources" in path.parts:
        return
    tree = ast.parse(path.read_text())
    quoted = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    spelt = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in quoted
        if TREE.search(node.value) and " " not in node.value
    ]
    assert spelt == []
