"""How often a test tries: a little by default, the full count in ``make test-slow``, more where a night is to spare."""

from __future__ import annotations

import os
from typing import Any

import pytest

NIGHTLY = int(os.environ.get("LONGTAIL_NIGHTLY", "1"))
"""``LONGTAIL_NIGHTLY=10 make test-slow`` tries ten times as often."""


def amounts(quick: int, full: int) -> list[Any]:
    """Values for ``parametrize``: the quick count, and the full one marked slow."""
    return [quick, pytest.param(full * NIGHTLY, marks=pytest.mark.slow)]
