"""A compile cache of a test's own, where what is compiled matters."""

from __future__ import annotations

import pytest


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache for this test and the processes it starts."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TILEPROOF_CACHE", str(folder))
    return folder
