"""What machines other than x86-64 build gives the same bits and words as x86-64's own build."""

import pickle
import subprocess
import sys

import pytest
import torch

from tileproof.runtime import virtual

from . import portable_cases


def test_the_portable_build_gives_the_same_bits_and_reports():
    code = f"""
import pickle, sys
from tileproof.runtime import virtual
virtual.use_portable_build()
from {portable_cases.__name__} import results
sys.stdout.buffer.write(pickle.dumps(results()))
"""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    there, here = pickle.loads(done.stdout), portable_cases.results()
    assert there.keys() == here.keys() and len(here) == 6 + 3 + 2 * (3 + 4)
    for name, expected in here.items():
        if isinstance(expected, str):
            assert there[name] == expected
        else:
            assert torch.equal(there[name], expected), name
            assert expected.count_nonzero(), name


def test_the_portable_build_is_chosen_before_the_first_use():
    virtual.build_library()
    with pytest.raises(RuntimeError, match="before the virtual GPU's first use"):
        virtual.use_portable_build()
