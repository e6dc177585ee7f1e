"""The report as a browser would read it: one file, nothing that loads or runs, hostile names harmless, numbers as
measured."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from engine.conditions.cuts import Cuts
from engine.errors import DataError
from engine.report import html
from engine.report.facts import gather
from engine.report.html import render, write
from engine.shards.cost import Amount, Cost
from engine.storage.store import open_store
from tests.support.hostile import HOSTILE, JudgedRun


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text outside of style and title."""

    VOID = frozenset(("meta", "img", "link", "br"))

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.style, self.texts = "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.elements if attribute in attributes]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def page(judged_run: JudgedRun) -> Page:
    write(judged_run.store, judged_run.spec)
    return Page(judged_run.store.read("report.html").decode())


def test_it_is_well_formed(page: Page) -> None:
    assert page.open == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_hostile_names_become_text_and_nothing_else(page: Page) -> None:
    tags = Counter(tag for tag, _ in page.elements)
    assert not {"script", "iframe", "object", "embed", "link", "form", "base", "a"} & tags.keys()
    assert tags["title"] == tags["style"] == 1
    assert tags["img"] == 5 * (6 + 6) + 2 * (5 + 6)  # the gallery, and pairs: five training images are nearest to any
    for name in HOSTILE:
        assert name in page.texts
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on") or key == "style"]


def test_hostile_names_stand_alone_in_their_direction(judged_run: JudgedRun, page: Page) -> None:
    text = judged_run.store.read("report.html").decode()
    assert f"<bdi>{HOSTILE[3]}</bdi>" in text


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert all(link.startswith("#") for link in page.values("href"))
    assert not re.search(r"url\(|@import", page.style)


def test_the_policy_allows_this_style_and_data_images_only(page: Page) -> None:
    policies = [a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv")]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    ]


def test_the_headline_is_what_was_measured(judged_run: JudgedRun, page: Page) -> None:
    arms = gather(judged_run.store, judged_run.spec).judge["arms"]
    made, real = arms["synthetic_3x"], arms["real"]
    low, high = (100 * bound for bound in made["interval"])
    assert (
        f"150 synthetic images alone (3x) gets {made['mean'] * 100:.1f} % [{low:.1f}, {high:.1f}] of 50 real"
        in page.words
    )
    assert f"Trained on the 50 real images, it gets {real['mean'] * 100:.1f} %" in page.words
    low, high = made["ratio_interval"]
    assert f"The ratio to real, {made['ratio']:.3f} [{low:.3f}, {high:.3f}], is below 1." in page.words
    assert "not another generator seed" in page.words


def test_the_mixing_is_told_as_it_was(judged_run: JudgedRun, page: Page) -> None:
    assert "mixed batches are half real, half synthetic." in page.words
    facts = gather(judged_run.store, judged_run.spec)
    recipe = facts.judge["recipe"]
    union = replace(facts, judge=facts.judge | {"recipe": recipe | {"mixing": "proportional"}})
    told = Page(render(union, [])).words
    assert "half real" not in told
    assert "mixed batches are drawn from the union of real and synthetic images." in told
    older = replace(facts, judge=facts.judge | {"recipe": {k: v for k, v in recipe.items() if k != "mixing"}})
    assert "half real, half synthetic" in Page(render(older, [])).words


def test_cut_prompts_are_told_where_they_were_counted(judged_run: JudgedRun, page: Page) -> None:
    assert "prompts cut" not in page.words  # an output of before: nobody has counted
    facts = gather(judged_run.store, judged_run.spec)
    found = Cuts(
        prompts=50, cut=3, by_tokenizer={"tokenizer": 3}, lengths={"tokenizer": 77}, example="a b <c>", kept="a b"
    )
    told = Page(render(replace(facts, cuts=found), [])).words
    assert "prompts cut 3 of 50 prompts are too long and are cut: 3 by tokenizer (77 tokens)" in told
    assert "Shorten the prompts" in told
    assert "Such as \u201ca b <c>\u201d, which is read as \u201ca b\u201d." in told
    whole = Page(render(replace(facts, cuts=found.model_copy(update={"cut": 0})), [])).words
    assert "prompts cut none of 50" in whole
    assert "Shorten the prompts" not in whole


def test_images_are_the_first_of_each_class_and_carry_their_prompt(page: Page) -> None:
    images = [
        attributes for tag, attributes in page.elements if tag == "img" and " of class " in (attributes["alt"] or "")
    ]
    assert images[0]["alt"] == f"real image of class {HOSTILE[0]}"
    synthetic = [a for a in images if a["alt"] == f"synthetic image of class {HOSTILE[2]}"]
    assert [a["title"] for a in synthetic] == [
        f"photo of {HOSTILE[2]} (sample {k})" for k in (2, 12, 17, 22, 27, 32)
    ]  # 7 is quarantined
    data = base64.b64decode(synthetic[0]["src"].partition(",")[2])
    with Image.open(io.BytesIO(data)) as small:
        assert small.size == (64, 64)
        assert small.getpixel((0, 0))[1] == small.getpixel((3, 3))[1] == 102


def test_copies_and_controls_are_told_with_their_numbers(judged_run: JudgedRun, page: Page) -> None:
    facts = gather(judged_run.store, judged_run.spec)
    copies, arms = facts.judge["copies"], facts.judge["arms"]
    own = copies["sets"]["3"]["pixels"]
    assert f"synthetic 3x pixels {100 * own['share']:.1f} %" in page.words
    assert f"{own['auc']:.3f}" in page.words
    assert facts.honest() != []
    for sentence in facts.honest():
        assert sentence in page.words
    photocopy = copies["photocopy"]
    assert f"Gaussian noise of sd {photocopy['noise']:.1f}" in page.words
    assert "Left out: real through VAE, as the generator has no VAE." in page.words
    assert f"{100 * arms['duplicated_3x']['mean']:.1f} (duplicated real)" in page.words
    images = {a["title"] for tag, a in page.elements if tag == "img" and a["alt"].startswith("nearest training image")}
    for pair in copies["pairs"]:
        where = f"sample {pair['synthetic']}, training image {pair['training']}"
        assert f"distance {pair['distance']:.1f}; {where}" in images


def test_pairs_are_the_images_that_they_name(judged_run: JudgedRun, page: Page) -> None:
    """The green level of an image is its number: 100 + index for synthetic ones, the number in the file for real
    ones."""
    pair = gather(judged_run.store, judged_run.spec).judge["copies"]["pairs"][0]
    text = f"distance {pair['distance']:.1f}; sample {pair['synthetic']}, training image {pair['training']}"
    key = judged_run.catalog.split("train")["key"][pair["training"]].as_py()
    levels = []
    for tag, a in page.elements:
        if tag == "img" and a["title"] == text:
            with Image.open(io.BytesIO(base64.b64decode(a["src"].partition(",")[2]))) as small:
                levels.append(small.getpixel((0, 0))[1])
    assert levels == [100 + pair["synthetic"], int(re.search(r"(\d+)$", key)[1])]


def test_an_output_of_before_has_no_copies_and_keeps_its_report(judged_run: JudgedRun) -> None:
    facts = gather(judged_run.store, judged_run.spec)
    arms = {
        key: {name: value for name, value in arm.items() if name not in ("copies", "control", "values", "measures")}
        for key, arm in facts.judge["arms"].items()
        if arm["kind"] in ("real", "synthetic", "mixed")
    }
    judge = {key: value for key, value in facts.judge.items() if key not in ("copies", "metric", "left_out")}
    older = replace(facts, judge={**judge, "arms": arms})
    found = Page(render(older, []))
    assert "copies" not in found.values("id")
    assert older.honest() == []
    assert "Accuracy by training set" in found.words


def test_another_metric_is_told_as_such(judged_run: JudgedRun) -> None:
    facts = gather(judged_run.store, judged_run.spec)
    found = Page(render(replace(facts, judge={**facts.judge, "metric": "auroc"}), []))
    assert "AUROC by training set" in found.words
    assert "gets AUROC " in found.words
    assert "real test images right" not in found.words


def test_losses_classes_and_counts_are_there(page: Page) -> None:
    assert "U-Net 3 steps, 1 s" in page.words
    assert "constant_image 1" in page.words
    assert "Given up after redraws: 1 of 150 planned" in page.words
    assert "not_an_image 1" in page.words
    assert "Set aside: 1; in the catalog: 100" in page.words
    assert "generate 12" in page.words


def test_equal_runs_give_equal_bytes(judged_run: JudgedRun, page: Page) -> None:
    names = ("report.html", "README.md", "results/gallery.png")
    before = [judged_run.store.read(name) for name in names]
    write(judged_run.store, judged_run.spec)
    assert [judged_run.store.read(name) for name in names] == before


def test_no_folder_of_this_machine_is_told(judged_run: JudgedRun, page: Page) -> None:
    folder = str(Path(judged_run.spec.source.path).parent)
    for name in ("report.html", "README.md"):
        assert folder not in judged_run.store.read(name).decode()


def test_a_run_without_judge_and_pretraining_has_its_report(judged_run: JudgedRun, tmp_path: Path) -> None:
    shutil.copytree(judged_run.store.url, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "results")
    store = open_store(tmp_path / "run")
    model = judged_run.spec.model.model_copy(update={"checkpoint": "acme/diffusion", "lora": "/x/style.safetensors"})
    write(store, judged_run.spec.model_copy(update={"model": model}))
    found = Page(store.read("report.html").decode())
    assert "has not been measured" in found.words
    assert "mimeo judge spec.yaml --output ." in found.words
    assert "acme/diffusion with LoRA style.safetensors" in found.words
    assert not {"accuracy", "classes", "training"} & set(found.values("id"))
    assert {"worth", "gallery", "quarantine", "facts"} <= set(found.values("id"))


def test_real_images_that_are_gone_leave_a_reason(judged_run: JudgedRun, tmp_path: Path) -> None:
    source = judged_run.spec.source.model_copy(update={"path": str(tmp_path / "gone.parquet")})
    shutil.copytree(judged_run.store.url, tmp_path / "run")
    store = open_store(tmp_path / "run")
    write(store, judged_run.spec.model_copy(update={"source": source}))
    found = Page(store.read("report.html").decode())
    assert "Images could not be read" in found.words
    assert "img" not in {tag for tag, _ in found.elements}


def test_an_unfinished_run_has_no_report(judged_run: JudgedRun, tmp_path: Path) -> None:
    shutil.copytree(judged_run.store.url, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(DataError, match="not finished"):
        write(open_store(tmp_path / "run"), judged_run.spec)


def test_many_classes_show_the_weakest(judged_run: JudgedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "MAX_CLASSES", 2)
    facts = gather(judged_run.store, judged_run.spec)
    found = Page(render(facts, []))
    assert "Shown are the 2 of 5 classes with the lowest synthetic-only accuracy" in found.words
    unjudged = Page(render(replace(facts, judge=None), []))
    assert "Shown are the 0 of 5 classes that come first" in unjudged.words


def test_the_cost_of_the_set_is_in_the_report(judged_run: JudgedRun, page: Page) -> None:
    assert "What the synthetic set cost" not in page.words  # its records tell no cost
    facts = gather(judged_run.store, judged_run.spec)
    gpu = ("cuda", "<b>GPU</b>")
    cost = Cost(3, 0, 150, 149, 160, Amount(3600.0, 720_000.0, 3600.0), Amount(1764.0, 0.0, 0.0), {gpu: 5364.0})
    resources = facts.spec.resources.model_copy(update={"price_per_hour": 10.0})
    spec = facts.spec.model_copy(update={"resources": resources})
    told = Page(render(replace(facts, cost=cost, spec=spec), []))
    assert "1.49 GPU-hours (<b>GPU</b>)" in told.words
    assert "149 of 160 drawn, 93.1 %" in told.words
    assert "100 accepted images a GPU-hour" in told.words
    assert "0.2 kWh, measured over 67 % of the device time" in told.words
    assert "100 per 1,000 accepted images; 14.9 in all, at 10 a GPU-hour" in told.words
