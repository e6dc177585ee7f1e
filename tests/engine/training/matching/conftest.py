"""One prepared output for all tests of the fine-tune."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support import outputs
from tests.support.outputs import Output


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Output:
    return outputs.ready(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
