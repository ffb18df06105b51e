"""Shared by the tests of models."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny matrices on many threads take ten times the processor time they take on one."""
    torch.set_num_threads(1)
