"""Shared by all tests: the system's CUDA stays hidden, seeds follow the test's name."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest
from hypothesis import settings

# Examples follow from the test's name, so a run repeats; machines are too noisy for deadlines.
settings.register_profile("tileproof", deadline=None, derandomize=True)
settings.load_profile("tileproof")


@pytest.fixture(scope="session", autouse=True)
def no_system_cuda() -> None:
    """Drop every PATH entry that holds an nvcc: a user has none, the project brings its own."""
    entries = os.environ["PATH"].split(os.pathsep)
    kept = [e for e in entries if not (Path(e) / "nvcc").exists()]
    os.environ["PATH"] = os.pathsep.join(kept)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test's own, stable under reordering and parallel runs."""
    return zlib.crc32(request.node.nodeid.encode())
