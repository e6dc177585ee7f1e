"""The plan: every image once a version, prefixes, class balance, partners of the class, and nothing paid for what is
not asked."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.generation.sample_plan import CHUNK, Plan, Rows
from engine.spec import RunSpec, validate


def make_spec(seed: int = 0, **generate: Any) -> RunSpec:
    return validate({"name": "p", "seed": seed, "source": {"kind": "digits"}, "generate": generate})


def make_plan(labels: list[int], seed: int = 0, **generate: Any) -> Plan:
    names = [f"c{k}" for k in range(max(labels) + 1)]
    return Plan(make_spec(seed, **generate), np.array(labels, np.int32), names)


def as_tuples(rows: Rows) -> list[tuple[int, ...]]:
    columns = (rows.index, rows.label, rows.anchor, rows.token_row, rows.init_row, rows.seed)
    return list(zip(*(c.tolist() for c in columns), strict=True))


label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=60)
variants = st.fixed_dictionaries(
    {
        "classes": st.sampled_from(["proportional", "balanced"]),
        "visual_token": st.sampled_from(["own", "class", "class_mean", "none"]),
        "pairing": st.sampled_from(["own", "class", "none"]),
    }
)


@given(labels=label_lists, seed=st.integers(0, 2**40), versions=st.integers(1, 4))
def test_each_version_uses_every_image_exactly_once(labels: list[int], seed: int, versions: int) -> None:
    n = len(labels)
    plan = make_plan(labels, seed, count=n * versions)
    for v in range(versions):
        assert sorted(plan.rows(v * n, (v + 1) * n).anchor.tolist()) == list(range(n))


def test_versions_come_in_different_orders() -> None:
    plan = make_plan(list(range(5)) * 8, count=400)
    orders = {tuple(plan.rows(v * 40, (v + 1) * 40).anchor.tolist()) for v in range(10)}
    assert len(orders) == 10


@given(labels=label_lists, seed=st.integers(0, 2**40), variant=variants, data=st.data())
def test_a_longer_plan_begins_with_the_shorter_one(
    labels: list[int], seed: int, variant: dict[str, str], data: st.DataObject
) -> None:
    short, longer = sorted(data.draw(st.tuples(st.integers(1, 300), st.integers(300, 10**12))))
    sizes = data.draw(st.tuples(st.integers(1, 100), st.integers(10**5, 10**5)))
    a = make_plan(labels, seed, count=short, shard_size=sizes[0], **variant)
    b = make_plan(labels, seed, count=longer, shard_size=sizes[1], **variant)
    assert as_tuples(a.rows(0, short)) == as_tuples(b.rows(0, short))


@given(labels=label_lists, variant=variants, cuts=st.lists(st.integers(0, 200), max_size=5))
def test_slices_join_to_the_whole(labels: list[int], variant: dict[str, str], cuts: list[int]) -> None:
    plan = make_plan(labels, count=200, **variant)
    edges = [0, *sorted(cuts), 200]
    parts = [row for a, b in itertools.pairwise(edges) for row in as_tuples(plan.rows(a, b))]
    assert parts == as_tuples(plan.rows(0, 200))


def test_slices_join_across_chunks() -> None:
    plan = make_plan([0, 1, 2, 1], count=3 * CHUNK, classes="balanced", visual_token="class")
    whole = as_tuples(plan.rows(0, 3 * CHUNK))
    assert as_tuples(plan.rows(CHUNK - 3, 2 * CHUNK + 5)) == whole[CHUNK - 3 : 2 * CHUNK + 5]


@given(labels=label_lists, seed=st.integers(0, 2**40), classes=st.sampled_from(["proportional", "balanced"]))
def test_labels_are_those_of_the_anchors(labels: list[int], seed: int, classes: str) -> None:
    rows = make_plan(labels, seed, count=150, classes=classes).rows(0, 150)
    assert rows.label.tolist() == [labels[a] for a in rows.anchor.tolist()]
    assert rows.label.dtype == np.int32


@given(labels=label_lists, seed=st.integers(0, 2**40))
def test_balanced_classes_differ_by_at_most_one_at_every_prefix(labels: list[int], seed: int) -> None:
    present = sorted(set(labels))
    rows = make_plan(labels, seed, count=5 * len(present) + 1, classes="balanced").rows(0, 5 * len(present) + 1)
    counts: Counter[int] = Counter()
    for done, label in enumerate(rows.label.tolist(), start=1):
        counts[label] += 1
        values = [counts[k] for k in present]
        assert max(values) - min(values) <= (0 if done % len(present) == 0 else 1)


@given(labels=label_lists, seed=st.integers(0, 2**40))
def test_balanced_plans_use_each_image_of_a_class_once_before_any_twice(labels: list[int], seed: int) -> None:
    rows = make_plan(labels, seed, count=400, classes="balanced").rows(0, 400)
    for k in set(labels):
        members = [row for row, label in enumerate(labels) if label == k]
        used = [a for a, label in zip(rows.anchor.tolist(), rows.label.tolist(), strict=True) if label == k]
        for v in range(len(used) // len(members)):
            assert sorted(used[v * len(members) : (v + 1) * len(members)]) == members


@given(labels=label_lists, seed=st.integers(0, 2**40), classes=st.sampled_from(["proportional", "balanced"]))
def test_class_partners_are_other_images_of_the_class(labels: list[int], seed: int, classes: str) -> None:
    rows = make_plan(labels, seed, count=200, classes=classes, visual_token="class", pairing="class").rows(0, 200)
    sizes = Counter(labels)
    for _, label, anchor, token, init, _ in as_tuples(rows):
        for partner in (token, init):
            assert labels[partner] == label
            assert (partner == anchor) == (sizes[label] == 1)


def test_class_partners_reach_every_other_image_evenly() -> None:
    rows = make_plan([0] * 6 + [1], count=70_000, visual_token="class").rows(0, 70_000)
    pairs = Counter(zip(rows.anchor.tolist(), rows.token_row.tolist(), strict=True))
    assert len(pairs) == 6 * 5 + 1
    expected = 10_000 / 5
    assert all(abs(n - expected) < 5 * expected**0.5 for (anchor, _), n in pairs.items() if anchor < 6)


def test_token_and_init_partners_are_drawn_independently() -> None:
    rows = make_plan([0] * 6, count=30_000, visual_token="class", pairing="class").rows(0, 30_000)
    same = float((rows.token_row == rows.init_row).mean())
    assert abs(same - 1 / 5) < 0.015


@pytest.mark.parametrize(
    ("key", "value", "column", "expected"),
    [
        ("visual_token", "own", "token_row", "anchor"),
        ("visual_token", "class_mean", "token_row", -1),
        ("visual_token", "class_gaussian", "token_row", -1),
        ("visual_token", "prior", "token_row", -1),
        ("visual_token", "none", "token_row", -1),
        ("pairing", "own", "init_row", "anchor"),
        ("pairing", "none", "init_row", -1),
    ],
)
def test_sources_without_a_partner(key: str, value: str, column: str, expected: int | str) -> None:
    rows = make_plan([0, 1, 1, 0], count=20, **{key: value}).rows(0, 20)
    want = rows.anchor.tolist() if expected == "anchor" else [expected] * 20
    assert getattr(rows, column).tolist() == want


def test_an_interpolated_token_has_the_partner_of_another_image_of_the_class() -> None:
    plan = make_plan([0, 1, 1, 0, 1], count=60, visual_token="interpolation")
    rows = plan.rows(0, 60)
    assert (rows.token_row != rows.anchor).all()
    assert (plan.labels[rows.token_row] == rows.label).all()
    keys = tuple("abcde")
    fact = plan.facts(3, 4, keys, keys)[0]
    assert (fact["anchor"], fact["token"]) == (keys[rows.anchor[3]], keys[rows.token_row[3]])


def test_classes_of_one_image_are_refused_where_nothing_can_be_drawn() -> None:
    with pytest.raises(DataError, match=r"c1: has one training image, so generate.visual_token interpolation"):
        make_plan([0, 1, 0], count=5, visual_token="interpolation")
    with pytest.raises(DataError, match=r"no class of two images, so generate.visual_token prior has no spread"):
        make_plan([0, 1, 2], count=5, visual_token="prior")


@pytest.mark.parametrize("classes", ["proportional", "balanced"])
def test_one_image_in_all(classes: str) -> None:
    rows = make_plan([0], count=30, classes=classes, visual_token="class", pairing="class").rows(0, 30)
    assert set(rows.anchor.tolist()) == set(rows.token_row.tolist()) == set(rows.init_row.tolist()) == {0}
    assert len(set(rows.seed.tolist())) == 30


def test_settings_that_change_samples_change_the_plan() -> None:
    labels = list(range(10)) * 5
    base = as_tuples(make_plan(labels, count=50).rows(0, 50))
    assert as_tuples(make_plan(labels, count=50, seed=1).rows(0, 50)) != base
    guided = make_plan(labels, count=50, guidance_scale=7.0).rows(0, 50)
    assert guided.seed.tolist() != [row[-1] for row in base]


def test_seeds_of_rows_are_those_of_the_first_attempt() -> None:
    plan = make_plan([0, 1], count=10)
    rows = plan.rows(0, 10)
    assert plan.seeds(rows.index).tolist() == rows.seed.tolist()
    assert not set(plan.seeds(rows.index, attempt=2).tolist()) & set(rows.seed.tolist())


@given(count=st.integers(1, 5000), size=st.integers(1, 700))
def test_shards_tile_the_plan(count: int, size: int) -> None:
    plan = make_plan([0, 1], count=count, shard_size=size)
    ranges = [plan.shard(k) for k in range(plan.shards)]
    assert [i for a, b in ranges for i in range(a, b)] == list(range(count))
    assert all(b - a == size for a, b in ranges[:-1])
    for outside in (-1, plan.shards):
        with pytest.raises(IndexError):
            plan.shard(outside)


def test_rows_outside_the_plan_are_refused() -> None:
    plan = make_plan([0], count=10)
    for start, stop in ((-1, 3), (5, 11), (4, 3)):
        with pytest.raises(IndexError):
            plan.rows(start, stop)
    assert len(plan.rows(10, 10)) == 0


def test_broken_labels_are_refused() -> None:
    for labels in (np.array([], np.int32), np.array([0, 2], np.int32), np.array([-1], np.int32)):
        with pytest.raises(DataError):
            Plan(make_spec(), labels, ["a", "b"])


def test_digest_is_the_hash_of_the_facts_line_by_line() -> None:
    labels = [0, 1, 1, 2]
    plan = make_plan(labels, count=40, visual_token="class", pairing="own", strength=0.5)
    keys, prompts = ["k0", "k1", "k2", "k3"], ["a", "b", "été", "d"]
    lines = [
        {
            "anchor": keys[anchor],
            "class": f"c{label}",
            "index": index,
            "init": keys[init],
            "label": label,
            "pairing": "own",
            "prompt": prompts[anchor],
            "seed": seed,
            "strength": 0.5,
            "token": keys[token],
            "visual_token": "class",
        }
        for index, label, anchor, token, init, seed in as_tuples(plan.rows(10, 30))
    ]
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    assert plan.digest(10, 30, keys, prompts) == hashlib.sha256(text.encode()).hexdigest()
    assert plan.digest(10, 30, keys, ["a", "b", "ete", "d"]) != plan.digest(10, 30, keys, prompts)


def test_samples_without_a_real_partner_name_none() -> None:
    fact = make_plan([0], count=1, visual_token="none").facts(0, 1, ["k"], ["p"])[0]
    assert fact["token"] is None
    assert fact["init"] is None
    assert fact["anchor"] == "k"


def test_a_plan_of_a_billion_costs_nothing_to_open() -> None:
    labels = np.sort(np.random.default_rng(0).integers(0, 1000, 100_000)).astype(np.int32)
    spec = make_spec(count=10**9, classes="balanced", visual_token="class")
    tracemalloc.start()
    began = time.perf_counter()
    plan = Plan(spec, labels, [str(k) for k in range(1000)])
    last = plan.rows(10**9 - 3, 10**9)
    seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last.index.tolist() == [10**9 - 3, 10**9 - 2, 10**9 - 1]
    assert seconds < 0.5  # typically 0.01 s
    assert peak < 20e6


def test_rows_are_cheap() -> None:
    plan = make_plan(list(range(10)) * 10, count=10**9)
    best = 1e9
    for _ in range(5):
        began = time.process_time()
        plan.rows(5 * 10**8, 5 * 10**8 + 200_000)
        best = min(best, (time.process_time() - began) / 200_000)
    assert best < 600e-9  # 110 ns on a quiet core


@settings(max_examples=5)
@given(count=st.integers(10**6, 10**11))
def test_the_end_of_a_plan_costs_no_more_than_its_start(count: int) -> None:
    rows = make_plan([0, 1, 2], count=count).rows(count - 6, count)
    assert len(set(rows.seed.tolist())) == 6


def test_planning_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, engine.generation.sample_plan; print(sorted({'torch', 'ray', "
        "'diffusers', 'pyarrow'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
