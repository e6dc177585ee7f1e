"""What a run is: the frozen spec, its loading and its identity."""

from engine.spec.load import canonical_json, differences, digest, identity, load, plain, sample_key, spec_hash, validate
from engine.spec.recipe import RunSpec

__all__ = [
    "RunSpec",
    "canonical_json",
    "differences",
    "digest",
    "identity",
    "load",
    "plain",
    "sample_key",
    "spec_hash",
    "validate",
]
