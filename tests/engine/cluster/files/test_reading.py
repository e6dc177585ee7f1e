"""Files that are no cluster files end in one line, whatever they hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.cluster.files import check


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no settings"),
        ("- a\n- b\n", "is not a mapping"),
        ("just text\n", "is not a mapping"),
        ("a: 1\na: 2\n", "key 'a' appears twice"),
        ("a: [1\n", "is not valid YAML"),
        ("a: !!python/object:os.system x\n", "is not valid YAML"),
        ("a: &x [*x]\n", "recursive"),
        ("a: 1\n---\nb: 2\n", "holds several documents"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)),
            "too many",
        ),
        ("{}\n", "cluster_name"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n", "no RayCluster and no RayJob"),
        ("? [a, b]\n: 1\n", "unhashable"),
        ("1: 2\nnull: 3\n", "is not text"),
        ("kind: RayCluster\nspec: 5\n", "RayCluster.spec"),
    ],
)
def test_one_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    problems = [str(problem) for problem in check(path).problems]
    assert problems
    assert any(words in line for line in problems), problems
    assert all(line.startswith(str(path)) and "\n" not in line for line in problems)
    assert {problem.exit_code for problem in check(path).problems} == {2}


def test_missing_folder_binary_and_large(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").write_text("a: b\n" * 300_000)
    for name, words in (
        ("absent", "cannot be read"),
        ("", "cannot be read"),
        ("binary", "not UTF-8"),
        ("large", "larger than"),
    ):
        (problem,) = check(tmp_path / name).problems
        assert words in str(problem)


def test_merge_keys_are_read_as_by_ray(tmp_path: Path) -> None:
    import yaml

    from engine.cluster.files.cluster_yaml import read

    text = "base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}\n"
    path = tmp_path / "file.yaml"
    path.write_text(text)
    assert read(path) == [yaml.safe_load(text)]
