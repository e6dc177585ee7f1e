"""Which tests run only when asked for, as they take minutes."""

from __future__ import annotations

import os

import pytest

slow = pytest.mark.skipif(os.environ.get("MIMEO_SLOW") != "1", reason="make test-slow runs it")
