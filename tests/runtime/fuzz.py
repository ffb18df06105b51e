"""Argument lists nobody means, for any launcher.

``python -m tests.runtime.fuzz [OP ...]`` draws 10,000 for the launcher of every op of the library,
on the null driver; `test_launcher_faults.py` does so for three ops. With ``--threads`` 32 threads
launch 10,000 times each on the virtual GPU instead, and every result is compared.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import tvm_ffi

from tileproof.codegen.build import _lowered, build
from tileproof.codegen.host import HostKernel, PlannedLaunch, compile_launchers, generate
from tileproof.dsl import Op, get, load_library
from tileproof.runtime import load
from tileproof.runtime.backends import CPU
from tileproof.runtime.signature import TORCH

TYPES = [TORCH[name] for name in ("f32", "f16", "bf16", "f64", "i32", "i64", "u8", "bool")]
NO_TENSORS = (None, 3, -1, 1 << 62, "text", 2.5, [1, 2])


def spoiled(random: Any, right: torch.Tensor, others: Sequence[torch.Tensor]) -> tuple[Any, bool]:
    """Something like the tensor `right`, and whether a launcher must refuse it."""
    what = random.randrange(8)
    if what == 0:
        return random.choice(NO_TENSORS), True
    if what == 1:
        other = right.to(random.choice(TYPES))
        return other, other.dtype != right.dtype
    if what == 2:
        shape = [random.randrange(5) for _ in range(random.randrange(7))]
        return torch.empty(shape, dtype=right.dtype), len(shape) != right.ndim
    if what == 3:  # zero, overlapping or exchanged strides
        memory = torch.zeros(4 * right.numel() + 64).to(right.dtype)
        return memory.as_strided(right.shape, [random.randrange(3) for _ in right.shape]), False
    if what == 4:  # sizes far beyond any memory
        one = right.as_strided([1] * right.ndim, right.stride())
        return one.expand([2**40, *right.shape[1:]]), True
    if what == 5:  # off by one element
        flat = torch.empty(right.numel() + 1, dtype=right.dtype)
        return flat[1:].view(right.shape), False
    if what == 6:
        return random.choice(others), False  # memory of another argument
    return right[:0], False


def attack(random: Any, op: str, launcher: Callable[..., None], right: list[torch.Tensor]) -> None:
    """One argument list. The launcher refuses what it must, in words that name the op."""
    tensors, wrong = list(right), False
    for _ in range(random.randrange(4)):
        i = random.randrange(len(tensors))
        if tensors[i] is right[i]:
            tensors[i], refuse = spoiled(random, right[i], right)
            wrong |= refuse
    if random.randrange(8) == 0:
        count = random.randrange(len(tensors) + 3)
        wrong |= count != len(tensors)
        tensors = (tensors * 2)[:count]
    try:
        launcher(*tensors)
    except (ValueError, TypeError) as error:
        said = str(error)
        assert said.startswith(f"{op}: "), said
        assert any(x is not y for x, y in zip(tensors, right, strict=False)) or wrong, said
    else:
        assert not wrong, [getattr(x, "shape", x) for x in tensors]


def hosted(op: Op, arch: str) -> tuple[HostKernel, list[torch.Tensor]]:
    """The launcher of an op at its tiny sizes, and tensors it takes."""
    specs, points = op.shape_set("tiny")
    spec = specs[0]
    sizes = spec.sizes(**points[0])
    launches = [PlannedLaunch.from_json(data) for data in _lowered(spec, arch)["launches"]]

    def numbers(letters: Sequence[str]) -> list[int]:
        return [int(x) if x.isdigit() else sizes[x] for x in letters]

    tensors = []
    for argument in op.args:
        dtype = TORCH[spec.types.get(argument.dtype, argument.dtype)]
        shape = numbers(argument.shape)
        made = torch.zeros(shape, dtype=torch.uint8).to(dtype)
        if argument.strides is not None:
            strides = numbers(argument.strides)
            last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
            made = torch.zeros(last + 1, dtype=torch.uint8).to(dtype).as_strided(shape, strides)
        tensors.append(made)
    return HostKernel(spec, (tuple(launches),)), tensors


def threads(arch: str, count: int) -> None:
    """32 threads share one kernel of the virtual GPU; each has its own sizes and tensors."""
    op = get("mhc/post")
    with tempfile.TemporaryDirectory() as folder:
        bundle = build([op.specialize(N=4, D=64)], [arch], Path(folder) / "bundle")
        library = load(bundle, backend="virtual")

        def work(M: int) -> None:
            generator = torch.Generator().manual_seed(M)
            shapes = ((M, 4, 64), (M, 64), (M, 4), (M, 4, 4))
            x, y, post, comb = (torch.randn(shape, generator=generator) for shape in shapes)
            inputs = x.bfloat16(), y.bfloat16(), post, comb
            expected = library.mhc_post(*inputs)
            for i in range(count):
                assert torch.equal(library.mhc_post(*inputs), expected), (M, i)

        with ThreadPoolExecutor(32) as pool:
            list(pool.map(work, range(1, 33)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", help="default: the whole library")
    parser.add_argument("--arch", default="sm_80")
    parser.add_argument("--lists", type=int, default=10_000)
    parser.add_argument("--threads", action="store_true")
    given = parser.parse_args()
    if given.threads:
        threads(given.arch, given.lists)
        print(f"32 threads, {given.lists} launches each")
        return
    for name in given.ops or sorted(load_library()):
        start = time.time()
        host, right = hosted(get(name), given.arch)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "launchers.so"
            path.write_bytes(compile_launchers(generate([host])))
            library = tvm_ffi.load_module(str(path))
        bind = library[f"bind_{host.spec.symbol}"]
        launcher = bind(0, library["null_driver"](), CPU, 0, 0, 0, True)
        launcher(*right)
        draw = random.Random(name)
        for _ in range(given.lists):
            attack(draw, name, launcher, right)
        launcher(*right)
        print(f"{name}: {given.lists} lists, {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
