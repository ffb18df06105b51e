"""What runs in production: a bundle, torch and TVM-FFI, and none of what built the bundle."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import torch

from tileproof.runtime import load

SCRIPT = """
    import sys

    class Refuse:
        NAMES = ("tilelang", "tvm", "z3", "tileproof.dsl", "tileproof.kernels", "tileproof.codegen")

        def find_spec(self, name, path=None, target=None):
            if any(name == n or name.startswith(n + ".") for n in self.NAMES):
                raise ImportError(f"{name} is not installed")

    sys.meta_path.insert(0, Refuse())
    import tileproof
    import torch

    inputs, expected = torch.load(sys.argv[2])
    library = tileproof.load(sys.argv[1], backend="virtual")
    assert torch.equal(library.mhc_post(*inputs), expected)
    assert torch.equal(tileproof.ops.mhc_post(*inputs), expected)
    print("ran", library.backend, sorted(set(sys.modules) & {"tilelang", "z3", "tileproof.dsl"}))
"""


def test_a_bundle_runs_without_what_built_it(bundle, post_inputs, tmp_path):
    inputs = post_inputs(7)
    saved = tmp_path / "tensors.pt"
    torch.save((inputs, load(bundle, backend="virtual").mhc_post(*inputs)), saved)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(bundle), str(saved)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "ran virtual []\n", done.stderr
