"""Freed memory against the kernel's own count of page faults, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from engine.cluster.memory import keep_freed
import numpy as np

print(sys.argv[1] == "kept" and keep_freed())
for number in range(60):
    if number == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [np.ones(2**20) for _ in range(3)]
    del parts
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> tuple[bool, int]:
    """Whether freed memory is kept, and page faults of 50 times three arrays of 8 MiB."""
    command = [sys.executable, "-c", FAULTS, how]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment}).stdout
    kept, count = said.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_not_handed_back_to_the_kernel() -> None:
    handed_back, (kept, count) = faults("plain")[1], faults("kept")
    assert kept
    assert count < handed_back / 10


def test_what_the_user_has_set_stays() -> None:
    kept, _ = faults("kept", MALLOC_TRIM_THRESHOLD_="131072")
    assert not kept
