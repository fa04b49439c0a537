"""Scoring 16,000 images needs hardly more memory than scoring 1,000; minutes, therefore slow."""

import pytest

from tests.speed.memory_ratio import measure


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_set():
    found = measure()
    assert found["ratio"] <= 1.15, found
