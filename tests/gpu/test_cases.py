"""What of the hardware cases can be tested without a card: they are collected, they compile, they
run, and what is wrong is seen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tileproof.codegen.device import compile_cuda
from tileproof.dsl import ALL, ARCHS

from . import conftest
from .card import Card
from .cases import TEXTS, cuda
from .comparing import Here, _texts_of, library_ops, run_op, run_program, run_text


class Off(Here):
    """A card that gets one bit of one output wrong."""

    def launch(self, kernel, grid, block, smem, args, **how):
        super().launch(kernel, grid, block, smem, args, **how)
        tensors = [getattr(a, "tensor", a) for a in args]
        kinds = [kind for kind, _ in self.kernels[kernel].parameters]
        outputs = [
            t
            for t, kind in zip(tensors, kinds, strict=True)
            if kind.endswith("*") and not kind.startswith("const")
        ]
        words = outputs[0].reshape(-1).view(torch.uint8)
        words[outputs[0].element_size() - 1] ^= 64  # an exponent's bit


TEXT_CASES = [(name, arch) for name, text in TEXTS.items() for arch in text.archs]


@pytest.mark.parametrize(("name", "arch"), TEXT_CASES)
def test_texts_run_on_the_virtual_gpu(name, arch):
    assert run_text(name, arch, Here) == ("", 0.0)
    y = TEXTS[name].launch(_texts_of(Here, arch), name)
    assert (y != -7).any() and len(y.unique()) > 1


def test_a_wrong_output_is_seen():
    assert "bits differ" in run_text("shuffles", "sm_80", Off)[0]
    assert "the card: counts" in run_program("histogram", "sm_80", Off)[0]
    assert "the card: C: 1 of" in run_program("persistent", "sm_80", Off)[0]
    assert "output 0" in run_op("norm/rmsnorm", "sm_80", Off)[0]


@pytest.mark.parametrize("name", library_ops())
def test_ops_leave_numbers_to_compare(name):
    assert run_op(name, "sm_80", Here) == ("", 0.0)


PAIRS = [
    (text, card.name) for card in ARCHS.values() for text in Card("", "", card.runs_on[0]).texts
]


@pytest.mark.parametrize(("arch", "card"), PAIRS)
def test_texts_compile_for_a_card(arch, card):
    """Of every architecture whose texts the card runs."""
    code = compile_cuda(cuda(arch), card, contract_fma=False)
    assert set(code.kernels) == {name for name, text in TEXTS.items() if arch in text.archs}


def test_what_a_card_can_run():
    def texts(major, minor):
        return Card("", "", (major, minor)).texts

    assert texts(8, 0) == texts(8, 6) == ["sm_80"]
    assert texts(8, 9) == ["sm_80", "sm_89"]
    assert texts(9, 0) == ["sm_80", "sm_89", "sm_90a"]
    assert texts(10, 0) == ["sm_80", "sm_89", "sm_100a"]
    assert texts(12, 0) == ["sm_80", "sm_89", "sm_120a"]
    assert texts(7, 5) == []
    assert {arch for major in (8, 9, 10, 12) for arch in texts(major, 9 if major == 8 else 0)} == {
        *ALL
    }


def test_results_name_the_card(tmp_path):
    done = [{"case": "text/bits", "arch": "sm_80", "difference": "", "worst": 0.0}]
    path = conftest.write(tmp_path, Card("NVIDIA X 1", "13.0", (9, 0)), done)
    assert path.name == "gpu-nvidia-x-1.json"
    written = json.loads(path.read_text())
    assert written["card"] == "NVIDIA X 1" and written["driver"] == "13.0"
    assert written["agree"] == 1 and written["cases"] == done


def test_without_a_card_nothing_ran_and_that_is_said():
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu/test_gpu.py"]
    root = Path(__file__).parents[2]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # also where there is one
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=hidden)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "cases did not run; no CUDA device to run them on: " in done.stdout
    assert "passed" not in done.stdout
