"""The table of all benchmarks in benchmarks/README.md, with the figures of the committed results (python -m
benchmarks.table [--write])."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pairs import FOLDER, number

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- begin: python -m benchmarks.table --write -->", "<!-- end -->"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Line:
    """One benchmark: `figure` makes text of the rows of its results."""

    name: str
    question: str
    peer: str
    target: str
    figure: Callable[[Rows], str]
    meaning: str
    results: str = ""  # the file's name without its end, where it is not the benchmark's

    def cells(self, folder: Path) -> list[str]:
        """The cells of the line; the figure is a dash until there are results."""
        path = folder / f"{self.results or self.name}.json"
        figure = self.figure(json.loads(path.read_text())["results"]) if path.exists() else "-"
        return [f"[{self.name}]({self.name}.py)", self.question, self.peer, self.target, figure, self.meaning]


def each(text: str, *fields: str) -> Callable[[Rows], str]:
    """`text` filled with fields of each row, after the name of its case."""
    return lambda rows: "; ".join(
        f"{row['case']}: {text.format(*(number(row[field]) for field in fields))}" for row in rows
    )


def judged(*whats: str) -> Callable[[Rows], str]:
    """Value and verdict of the rows whose `what` begins with one of these."""

    def one(row: dict[str, Any]) -> str:
        told = "" if row["target"] is None else f" ({row['verdict']})"
        return f"{row['case']}: {number(row['value'])} {row['what']}{told}"

    return lambda rows: "; ".join(one(row) for row in rows if row["what"].startswith(whats))


def frontier(rows: Rows) -> str:
    """What held-out images would choose of each training, and its last weights."""

    def told(point: dict[str, Any]) -> str:
        return f"ratio {number(point['ratio'])}, copies {number(point['share'])}"

    return "; ".join(
        f"{row['case']}: {told(min(row['points'], key=lambda point: point['held']))} as "
        f"chosen, {told(row['points'][-1])} at the end"
        for row in rows
    )


def tokens(rows: Rows) -> str:
    """Coverage and copies of each source of visual tokens under SimCLR."""
    return "; ".join(
        f"{row['case']}, {row['source']}: coverage {number(row['coverage'])}, copies {number(row['copies'])}"
        for row in rows
        if row["encoder"] == "simclr"
    )


LINES = (
    Line(
        "generation_overhead",
        "What does the engine cost over a plain loop?",
        "diffusers' pipeline called in a loop, nothing saved; that pipeline bare, from prompt embeddings to uint8",
        ">= 0.90 of the bare one with batches of 0.3 s, >= 0.97 with half a second",
        each("{} of the loop, {} of the bare pipeline", "ratio", "ratio_to_bare"),
        "the whole engine, images on disk, is as fast as the loop that throws them away",
    ),
    Line(
        "match_step",
        "What does the fine-tune gain by computing inputs once?",
        "diffusers' own LoRA training loop",
        "-",
        each("{} times; with the MMD term {} of the rate without", "cached_over_diffusers", "mmd_over_plain"),
        "matching trains no slower than the script that it replaces, and its loss costs little",
    ),
    Line(
        "mixing_loader",
        "How fast does the classifier's loader feed?",
        "stock webdataset on the same shards; with simplejpeg in it, in processor time",
        ">= 4 at 32 px, >= 1.25 at 224 px, in processor time",
        each(
            "{} times, {} with ingest over 10 epochs, {} in processor time",
            "mixing_over_webdataset",
            "with_ingest_10_epochs",
            "cpu_over_simplejpeg",
        ),
        "decoding once pays from the second epoch on",
    ),
    Line(
        "shard_writing",
        "What does a durable shard cost?",
        "a plain write + fsync of the same bytes; webdataset's TarWriter",
        ">= 0.5 of the plain write and >= 4 times TarWriter at 62 KB; >= 10 times at 1.5 KB",
        judged("MB/s", "samples/s"),
        "what tar, hash, exclusive publish and record add to the disk's own time",
    ),
    Line(
        "planning",
        "What does a plan cost, however long?",
        "a NumPy table of the same rows in memory; a plan of 1e6 samples",
        "<= 100 ns a row; 1e9 samples <= 1.2 times 1e6",
        judged("ns a row", "time to open", "MiB"),
        "whether the length of a plan costs time or memory",
    ),
    Line(
        "null_generator",
        "How many samples a second does the engine carry, and what do they cost in memory?",
        "one process that only writes such shards",
        ">= 20,000 samples/s, >= 0.5 of the writer, <= 20 bytes a sample",
        judged("samples/s", "bytes"),
        "a generator must be faster than this before the engine is what limits it",
    ),
    Line(
        "resume",
        "How much later does a resumed run draw its first sample?",
        "a cold start of the same verb",
        "<= 1.05 with 1e6 samples done",
        judged("over a cold", "ms that"),
        "what stopping and going on costs",
    ),
    Line(
        "first_sample",
        "How soon is the first image on disk?",
        "a diffusers script; the same script in an actor of Ray",
        "<= 1.2 of the script, <= 3 s beyond it in Ray",
        judged("times", "seconds"),
        "what starting the engine costs a small run",
    ),
    Line(
        "token_sources",
        "Which source of visual tokens covers a class without copying?",
        "features of held-out images; the training images' own",
        "-",
        tokens,
        "coverage and copies of the tokens alone, before any generator has read them",
    ),
    Line(
        "approximate_modes",
        "What do the modes that leave work out cost in quality?",
        "the exact mode; 100 real images",
        "-",
        judged("times", "accuracy", "Fréchet"),
        "whether a mode that draws faster still makes training data",
    ),
    Line(
        "verify_rate",
        "How fast is verification?",
        "reading the same files into SHA-256",
        ">= 0.9",
        judged("MB/s"),
        "what checking a data set costs beyond hashing it",
    ),
    Line(
        "peer_scripts",
        "How much faster than what people run instead?",
        "the Real-Fake script (a file an image); Ray Data's map_batches + write_webdataset",
        ">= 1.25 of the script with JPEG, 1.5 with PNG; >= 1.1 of Ray Data",
        lambda rows: "; ".join(
            f"{row['case']}, {row['peer']}, {row['format']}: {number(row['ratio'])} (the model "
            f"alone {number(row['bound'])})"
            for row in rows
            if row["judged"]
        ),
        "what overlap, batching and no image through Ray are worth where few steps make an image",
    ),
    Line(
        "fast_settings",
        "What does each setting of `resources.fast` bring on a CPU?",
        "the engine's sampler without it",
        "pixels within 2 of 255",
        judged("times"),
        "which exact settings are worth setting where there is no GPU",
    ),
    Line(
        "freed_memory",
        "What is gained by keeping the memory that a CPU worker frees?",
        "the same batches with glibc's defaults; equal pictures",
        "-",
        judged("times", "faults"),
        "how much of a small model's time the kernel spends on zeroing pages; users may set "
        "glibc's variables for their own scripts",
    ),
    Line(
        "actors_scaling",
        "Do many actors, or one slow one, cost anything?",
        "one actor times their number; the makespan with no actor ever idle",
        ">= 0.95 at 32 actors; <= 1.05 with one 3x slower",
        lambda rows: "; ".join(f"{row['case']}: {number(row['ratio'])}" for row in rows if "ratio" in row),
        "actors that sleep instead of drawing: what is lost is the engine's",
    ),
    Line(
        "profile",
        "Where does an actor's time go?",
        "its wall time",
        ">= 0.97 in the model, <= 0.03 for safety",
        each("{} in the model, {} for safety", "share", "safety"),
        "whatever is not the model is waste",
    ),
    Line(
        "null_studies",
        "How often does a study find what is not there, or miss what is?",
        "simulated studies whose truth is known, judged by the functions of `search`, `study` and `equivalence`",
        "false higher <= 2.5 %, coverage 93 to 97 %, false lack of fit <= 5 %, peaks found >= 90 %",
        judged(""),
        "whether the statistics keep their word: nested seeds, selection and test images included",
    ),
    Line(
        "pretrain_sizes",
        "What does training the default generator cost at each image size?",
        "-",
        "-",
        each("{} CPU minutes of one thread, {} CPU seconds a sample", "cpu_minutes", "cpu_seconds_a_sample"),
        "how long `mimeo run` trains before it draws",
    ),
    Line(
        "frontier",
        "How does worth grow with the length of the training, and copying with it?",
        "real images' own copy share; judges of real images",
        "-",
        frontier,
        "whether a longer training is worth what it copies",
        results="frontier_digits",
    ),
    Line(
        "gpu_study",
        "Latent or pixels, copying against n, and matching, on one GPU in 25 minutes?",
        "the best real-only or control arm",
        "mixed >= half a point above it, copy share <= 2 %",
        lambda rows: "see gpu_study.json",
        "`make gpu-study`; not measured yet: needs a CUDA device",
    ),
    Line(
        "gpu",
        "How close is one GPU to its limit?",
        "its own bf16 matmul peak; the Real-Fake script on the same GPU",
        "SD-1.5 0.50, SDXL 0.60, DiT-XL/2 0.55 of the peak; >= 2 times the script",
        lambda rows: "see gpu_*.json",
        "`make bench-gpu`; not measured yet: needs a CUDA device",
    ),
)


def table(folder: Path = FOLDER) -> str:
    """The Markdown table."""
    head = ["benchmark", "question", "peer or limit", "target", "figure", "what it means"]
    rows = [head, ["---"] * len(head), *(line.cells(folder) for line in LINES)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def filled(text: str) -> str:
    """The README with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        README.write_text(filled(README.read_text()))
    else:
        print(table())
