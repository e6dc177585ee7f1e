"""The tree below an output, as README shows it: every name stands here, and in no other module."""

from __future__ import annotations

# What a run is, and what it plans
SPEC = "spec.yaml"
PLAN = "plan.json"

# Real images and their conditions
CATALOG = "catalog/catalog.parquet"
CATALOG_QUARANTINE = "catalog/quarantine.parquet"
CATALOG_NEAR_DUPLICATES = "catalog/near_duplicates.parquet"
CATALOG_ATTEMPTS = "catalog/attempts/"
CATALOG_DONE = "catalog/_done.json"
CONDITIONS = "conditions/"
CAPTIONS = "conditions/captions.parquet"
FEATURES = "conditions/features.parquet"
CLASSES = "conditions/classes.parquet"
FITS = "conditions/fits.parquet"

# Generators; a marker comes last, and says that its folder is whole
MODEL = "model"
MODEL_MARKER = "model/mimeo.json"
MATCH = "match/"
MATCH_MODEL = "match/model"
MATCH_MARKER = "match/mimeo.json"
MATCH_INPUTS = "match/inputs.parquet"
MATCH_SAMPLES = "match/samples"  # -000100.png: validation samples at that step
PRETRAIN_CHECKPOINTS = "checkpoints/pretrain"
MATCH_CHECKPOINTS = "checkpoints/match"
TRAIN_CHECKPOINTS = "checkpoints/train"

# Synthetic images
DATA = "data"
MANIFEST = "manifest.parquet"
QUARANTINE = "quarantine.parquet"
MANIFEST_SEAL = "manifest.json"
SEAL = "seal.json"
USAGE = "usage"

# Findings: JSON first
PROMPTS = "results/prompts.json"
PRETRAIN = "results/pretrain.json"
MATCH_RESULT = "results/match.json"
COPIES = "results/copies.json"
JUDGE = "results/judge.json"
JUDGES = "results/judge"
TRAIN = "results/train.json"
TRAINED = "results/train"
EVALUATE = "results/evaluate.json"
EVALUATED = "results/evaluate"
EVALUATED_JUDGES = "results/evaluate/judges"
SUMMARY = "results/summary.json"
SECONDS = "results/seconds.json"
TEST_READINGS = "results/test_readings"

# Studies
TRIALS = "trials"  # the outputs of their generators and sets
SEARCH = "results/search.json"
SEARCH_TRIALS = "results/search/trials"
SEARCH_TESTS = "results/search/test"
SEARCH_CHOICE = "results/search/choice.json"
SEARCH_TEST = "results/search/test.json"
EQUIVALENCE = "results/equivalence.json"
EQUIVALENCE_CELLS = "results/equivalence"
ABLATION = "results/ablation.json"
ABLATION_TRIALS = "results/ablation"
DELIBERATE = "results/deliberate.json"
DELIBERATE_TRIALS = "results/deliberate"
WORTH = "results/worth.json"
WORTH_TRIALS = "results/worth"

# For people, and for other tools
REPORT = "report.html"
GALLERY = "results/gallery.png"
CARD = "README.md"


def beside(result: str, ending: str) -> str:
    """The same finding in another form: `results/search.json` as `results/search.md`."""
    return f"{result.removesuffix('.json')}.{ending}"
