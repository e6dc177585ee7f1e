"""Recipes that no run can be made of: paths, sizes, and every field with every kind of wrong value."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from engine import spec as specs
from engine.errors import ConfigError, MimeoError
from engine.spec import RunSpec
from engine.spec import yaml as strict
from engine.spec.load import plain, validate
from engine.spec.sources import Source
from engine.storage.claim import to_yaml
from pipelines.context import check, load_recipe
from tests.bad_inputs.attacks import Attack, check_attack, control_characters

LONG, LONGER = "r" * 300, "r" * 5000
HEAD = "name: bad\nimages: {size: 8}\n"
DIGITS = HEAD + "source: {kind: digits}\n"


def plan(name: str, *settings: str, codes: tuple[int, ...] = (2,), says: tuple[str, ...] = (), **more: Any) -> Attack:
    """A row: `mimeo plan quickstart` with settings."""
    changes = tuple(word for setting in settings for word in ("--set", setting))
    return Attack(name, ("plan", "quickstart", *changes), codes, says, **more)


def written(name: str, text: str | bytes, *says: str) -> Attack:
    """A row: a recipe file of this text."""
    data = text.encode() if isinstance(text, str) else text
    return Attack(name, ("plan", "r.yaml"), (2,), says, make=lambda here: (here / "r.yaml").write_bytes(data))


def loop(here: Path) -> None:
    (here / "a").symlink_to(here / "b")
    (here / "b").symlink_to(here / "a")


def chain(here: Path) -> None:
    for number in range(60):
        (here / f"{number}").symlink_to(here / f"{number + 1}")


PLACES = {
    "~nobody-here/x": None,
    f"/{LONG}/x": None,
    f"/{LONGER}": None,
    "/tmp/" + "d/" * 3000: None,
    "x\0y": None,
    '"a\\0b"': None,
    "{here}/a": loop,
    "{here}/0": chain,
    "/dev/zero": None,
    "/dev/stdin": None,
    "/proc/self/mem": None,
    "/nowhere/at/all": None,
    "ftp://host/x": None,
    "https://host/x": None,
    "s3:/bucket/x": None,
    "s3://": None,
    "s3://b/../x": None,
    "s3://user:pass@b/x": None,
    "file://host/x": None,
    "a::b": None,
}
HOLDERS = {
    "source folder": "source={{kind: folder, path: {}}}",
    "source tars": "source={{kind: webdataset, path: {}}}",
    "source parquet": "source={{kind: parquet, path: {}}}",
    "source usps": "source={{kind: usps, path: {}}}",
    "source npz": "source={{kind: medmnist, path: {}}}",
    "test set": "source={{kind: folder, path: /usr, test_path: {}}}",
    "checkpoint": "model.checkpoint={}",
    "lora": "model.lora={}",
    "captions": "conditions.caption={{kind: blip, path: {}}}",
    "features": "conditions.features={{backend: transformers, path: {}}}",
}
WHO_READS_LATER = (
    "captions",
    "features",
    "checkpoint",
    "test set",
    "lora",
)  # `plan` opens no model, so what is merely absent is no fault yet


def places() -> Iterator[Attack]:
    for (kind, setting), (place, make) in itertools.product(HOLDERS.items(), PLACES.items()):
        if place == "x\0y":
            continue  # no command line can hold it; the escape stands for it
        codes = (2, 3, 0) if kind in WHO_READS_LATER else (2, 3)
        codes += (4,) if place.startswith("/proc") else ()
        yield plan(f"{kind} {place[:24]!r}", setting.format(place), codes=codes, make=make)


RECIPES = [
    Attack("recipe path 300 chars", ("plan", LONG), (2,), ("File name too long",)),
    Attack("recipe path 5000 chars", ("plan", LONGER), (2,), ("File name too long",)),
    Attack("recipe unknown user", ("plan", "~nobody-here/r.yaml"), (2,), ("no such recipe",)),
    Attack("recipe empty name", ("plan", ""), (2,)),
    Attack("recipe folder", ("plan", "/tmp"), (2,), ("regular file",)),
    Attack("recipe device", ("plan", "/dev/zero"), (2,), ("regular file",)),
    Attack("recipe standard input", ("plan", "/dev/stdin"), (2,)),
    Attack("recipe url", ("plan", "https://host/r.yaml"), (2,), ("no such recipe",)),
    Attack("recipe fifo", ("plan", "r.yaml"), (2,), ("regular file",), make=lambda here: os.mkfifo(here / "r.yaml")),
    Attack("recipe loop of links", ("plan", "a"), (2,), make=loop),
    Attack("recipe below a file", ("plan", "f/r.yaml"), (2,), make=lambda here: (here / "f").write_text("")),
    written("recipe empty", "", "holds no settings"),
    written("recipe text", "just words", "mapping"),
    written("recipe list", "[1, 2]", "mapping"),
    written("recipe 500k-long flow list", DIGITS + "judge: {multiples: [" + "1," * 500_000 + "1]}", "values"),
    written("recipe 300k-long flow list", DIGITS + "judge: {multiples: [" + "1," * 300_000 + "1]}", "values"),
    written("recipe megabyte of one word", DIGITS + "seed: " + "x" * 1_000_000, "seed"),
    written("recipe over a megabyte", "#" * (1 << 20) + "\n" + DIGITS, "1 MiB"),
    written("recipe nested deep", DIGITS + "seed: " + "[" * 100_000, "nested"),
    written("recipe nested maps", DIGITS + "seed: " + "{a: " * 100_000, "nested"),
    written("recipe aliases", DIGITS + "a: &a [1]\nb: *a", "anchors"),
    written("recipe two documents", DIGITS + "---\n" + DIGITS, "more than one document"),
    written("recipe tag", DIGITS + "seed: !!python/object/apply:os.system [x]", "tag"),
    written("recipe NUL", DIGITS + "seed: \0", "not YAML"),
    written("recipe escape codes", DIGITS + 'seed: "\\e[2J\\a"', "seed"),
    written("recipe key of escape codes", DIGITS + '"\\e[2J\\u202e": 1', "unknown key"),
    written("recipe latin-1", DIGITS.encode() + b"# \xe9", "UTF-8"),
    written("recipe UTF-16", DIGITS.encode("utf-16"), "UTF-8"),
    written("recipe binary", bytes(range(256)) * 100, "UTF-8"),
    written("recipe number of 5,000 digits", DIGITS + "seed: " + "9" * 5000, "YAML"),
    written("recipe surrogate", DIGITS + 'seed: "\\ud800"'),
    plan("split inf", "split.train=.inf", says=("split.train",)),
    plan("split nan", "split.test=.nan", says=("split.test",)),
    plan("count 1e400", "generate.count=1e400", says=("generate.count",)),
    plan("override without value", "seed"),
    plan("override of nothing", "=1"),
    plan("override below a number", "seed.x=1"),
    plan("override key of 5000 chars", f"{LONGER}=1"),
    plan("override value of 100,000 chars", f"seed={'x' * 100_000}"),
    plan("override nested deep", f"seed={'[' * 50_000}"),
    plan("prompt of 5000 chars", f"conditions.prompt={LONGER}", says=("conditions.prompt",)),
    plan(
        "class name of escape codes",
        'source={kind: parquet, path: "/\\e[2J\\u202ex"}',
        codes=(3,),
        says=("\\x1b[2J\\u202e",),
    ),
]
CLUSTER_FILES = [
    Attack("cluster file fifo", ("cluster", "c"), (2,), make=lambda here: os.mkfifo(here / "c")),
    Attack("cluster file device", ("cluster", "/dev/zero"), (2,)),
    Attack("cluster file folder", ("cluster", "."), (2,)),
    Attack("cluster file 5000 chars", ("cluster", LONGER), (2,)),
    Attack(
        "cluster file long list",
        ("cluster", "c"),
        (2,),
        make=lambda here: (here / "c").write_text("a: [" + "1," * 500_000),
    ),
    Attack("cluster file deep", ("cluster", "c"), (2,), make=lambda here: (here / "c").write_text("[" * 200_000)),
]


@pytest.mark.parametrize("attack", [*RECIPES, *places()], ids=lambda attack: attack.name)
def test_a_recipe_that_cannot_be_is_one_line(attack: Attack, tmp_path: Path) -> None:
    check_attack(attack, tmp_path)


@pytest.mark.parametrize("attack", CLUSTER_FILES, ids=lambda attack: attack.name)
def test_a_cluster_file_that_is_none_is_said_to_be(attack: Attack, tmp_path: Path) -> None:
    """`mimeo cluster` lists problems on standard output, one a line."""
    from tests.bad_inputs.attacks import run

    here, records = tmp_path / "here", tmp_path / "records"
    here.mkdir()
    records.mkdir()
    if attack.make is not None:
        attack.make(here)
    outcome = run(attack, here, records)
    assert outcome.code == 2
    assert len(outcome.out.splitlines()) == 1
    assert outcome.err == ""
    assert outcome.seconds < 5


VALUES: dict[str, Any] = {
    "NaN": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "-1": -1,
    "0": 0,
    "huge": 10**18,
    "endless": 1e308,
    "fraction": 0.123456789,
    "true": True,
    "null": None,
    "empty": "",
    "blank": " \n\t",
    "NUL": "a\0b",
    "escapes": "\x1b[2J\u202e\x9b",
    "5000 characters": LONGER,
    "text": "nonsense",
    "number as text": "1",
    "list": [],
    "nested list": [[[1]], {"a": None}],
    "mapping": {"a": 1},
    "long list": [0.5] * 2000,
}


def fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Dotted names of every field and section of a model, through unions and optional sections."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        for inner in sections(field.annotation):
            yield from fields(inner, f"{above}{name}.")


def sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif not isinstance(annotation, type):
        for part in get_args(annotation):
            yield from sections(part)


def base(key: str) -> dict[str, Any]:
    """A recipe that has the section of a key."""
    data: dict[str, Any] = yaml.safe_load(DIGITS)
    if key.startswith("source."):
        for member in get_args(get_args(Source)[0]):
            if key.removeprefix("source.") in member.model_fields:
                data["source"] = {"kind": get_args(member.model_fields["kind"].annotation)[0]}
                needed = [n for n, f in member.model_fields.items() if f.is_required() and n != "kind"]
                data["source"] |= dict.fromkeys(needed, "/nowhere")
                break
    return data


@pytest.mark.parametrize("key", sorted(set(fields(RunSpec))))
def test_each_value_of_a_field_is_taken_or_is_one_line(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is accepted comes back from the recipe of an output as it was; all else is a line that any terminal
    takes."""
    monkeypatch.chdir(tmp_path)
    *above, last = key.split(".")
    taken = 0
    for name, value in VALUES.items():
        data = base(key)
        section = data
        for part in above:
            section = section.setdefault(part, {})
        section[last] = value
        try:
            spec = validate(data)
            check(spec)
        except MimeoError as error:
            text = str(error)
            assert "\n" not in text, name
            assert control_characters(text) == "", name
            assert len(text) < 3500, name
            continue
        taken += 1
        assert validate(strict.parse(to_yaml(spec), "spec.yaml")) == spec, name
        assert specs.spec_hash(validate(plain(spec))) == specs.spec_hash(spec), name
    assert taken < len(VALUES)  # no field takes everything


@pytest.mark.parametrize(
    "url", ["s3://key:s3cr3t@b/x", "s3://b/x?X-Amz-Signature=s3cr3t", "az://c/x.tar?sig=s3cr3t&se=1"]
)
def test_a_recipe_with_a_secret_is_refused_and_does_not_tell_it(url: str) -> None:
    for key in ("model.checkpoint", "conditions.prompt", "generate.negative_prompt"):
        with pytest.raises(ConfigError) as caught:
            check(load_recipe("quickstart", [f'{key}="{url}"']))
        assert "s3cr3t" not in str(caught.value)
