"""Argument lists nobody means, for any launcher.

``python -m tests.runtime.fuzz [OP ...]`` draws 10,000 for the launcher of every op of the library,
on the null driver; `test_launcher_faults.py` draws a few hundred. With ``--threads`` 32 threads
launch 10,000 times each on the virtual GPU instead, and every result is compared.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tvm_ffi

from tileproof.codegen.build import _lowered, build
from tileproof.codegen.host import HostKernel, PlannedLaunch, compile_launchers, generate
from tileproof.dsl import Op, Specialization, get, layout, load_library
from tileproof.runtime import load

from .contract import RefusedError, check_call
from .dlpack import CPU, Array

NO_TENSORS = (None, True, 3, -1, 1 << 62, "text", 2.5, [1, 2])
TYPES = ((0, 32), (0, 64), (1, 8), (2, 16), (2, 32), (2, 64), (4, 16), (6, 8), (10, 8), (14, 8))
ODD_TYPES = ((5, 64, 1), (17, 4, 2), (2, 32, 2), (2, 0, 1), (255, 255, 65535))
OFFSETS = (0, *range(16, 1024, 48))  # bytes
DEVICES = ((1, 1), (1, -1), (2, 0), (3, 0), (10, 0), (99, 7))
NUMBERS = (-(1 << 63), -(1 << 31), -1, 0, 1, 2, 3, 1 << 20, 1 << 31, (1 << 32) + 1, (1 << 63) - 1)


def spoiled(draw: Any, right: Array, others: Sequence[Array]) -> Any:
    """Something like the array `right`. `draw` is a random.Random."""
    what = draw.randrange(12 if right.shape else 8)
    if what == 0:
        return draw.choice(NO_TENSORS)
    if what == 1:
        chosen = draw.choice(ODD_TYPES) if draw.randrange(3) == 0 else (*draw.choice(TYPES), 1)
        return replace(right, dtype=chosen)
    if what == 2:
        rank = draw.randrange(7)
        shape = tuple(draw.randrange(5) for _ in range(rank))
        return replace(right, shape=shape, strides=(1,) * rank)
    if what == 3:
        return replace(right, offset=draw.choice((1, 2, right.itemsize, 16, 4096)))
    if what == 4:
        return replace(right, data=0, offset=draw.choice((0, 0, 256)))
    if what == 5:
        return replace(right, device=draw.choice(DEVICES))
    if what == 6:  # memory of another argument, or a little into it
        return replace(right, data=draw.choice(others).data + draw.choice(OFFSETS))
    if what == 7:
        return draw.choice(others)
    sizes, steps = list(right.shape), list(right.strides)
    axis = draw.randrange(len(sizes))
    if what == 8:  # zero, overlapping, exchanged, negative and far strides
        steps[axis] = draw.choice((*NUMBERS, *steps, -steps[axis], steps[axis] // 2))
        return replace(right, strides=tuple(steps))
    if what == 9:
        sizes[axis] = draw.choice((*NUMBERS, sizes[axis] - 1, sizes[axis] + 1))
        return replace(right, shape=tuple(sizes))
    if what == 10:  # what an axis steps over is as long as it says
        sizes[axis] = draw.randrange(2 * abs(sizes[axis]) % 999 + 1)
        return replace(right, shape=tuple(sizes), strides=contiguous(sizes))
    inside = draw.choice(others).data + draw.choice(OFFSETS)  # and without an element
    return replace(right, shape=(0, *sizes[1:]), data=draw.choice((0, right.data, inside)))


def contiguous(sizes: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides."""
    steps = [1] * len(sizes)
    for i in reversed(range(len(sizes) - 1)):
        steps[i] = steps[i + 1] * sizes[i + 1]
    return tuple(steps)


def argument_list(draw: Any, right: Sequence[Array]) -> list[Any]:
    """The arrays `right` with up to three of them spoiled, and now and then another number."""
    arguments: list[Any] = list(right)
    for _ in range(draw.randrange(4)):
        i = draw.randrange(len(arguments))
        if isinstance(arguments[i], Array):
            arguments[i] = spoiled(draw, arguments[i], right)
    if draw.randrange(16) == 0:
        arguments = (arguments * 2)[: draw.randrange(len(arguments) + 3)]
    return arguments


def attack(spec: Specialization, launcher: Callable[..., None], arguments: Sequence[Any]) -> bool:
    """One call: refused in the words it deserves, or taken. Returns whether it was taken."""
    try:
        expected, sure = None, check_call(spec, arguments)
    except RefusedError as refused:
        expected, sure = refused, True
    try:
        launcher(*arguments)
    except (ValueError, TypeError) as error:
        said = str(error)
        if sure:
            assert expected is not None, said
            assert said.startswith(f"{spec.op.name}: {expected.where}"), (said, expected.where)
            assert type(error) is expected.kind, (said, expected.kind)
        else:
            assert ": got memory that overlaps" in said, said
        return False
    assert expected is None, (str(expected), arguments)
    return True


def right_arrays(spec: Specialization, point: dict[str, int]) -> list[Array]:
    """Arrays that the launcher of `spec` takes. Nothing lies at their addresses."""
    sizes, at, arrays = spec.sizes(**point), 1 << 40, []
    for declared in spec.args:
        shape = tuple(layout.value(n, sizes) for n in declared.shape)
        dtype = (declared.dtype.code, declared.dtype.bits, 1)
        arrays.append(Array(at, shape, layout.strides(declared, sizes), dtype))
        at += 1 << 30
    return arrays


def hosted(op: Op, arch: str | None) -> tuple[HostKernel, list[Array]]:
    """The launcher of an op at its tiny sizes, and arrays it takes. Without `arch` it launches, for
    all it checks comes from the declaration, a kernel that takes every tensor and no time to lower.
    """
    specs, points = op.shape_set("tiny")
    spec = specs[0]
    if arch is None:
        tensors = tuple(("tensor", i) for i in range(len(spec.args)))
        launches = [PlannedLaunch("none", tensors, ("1", "1", "1"), (32, 1, 1), 0)]
    else:
        launches = [PlannedLaunch.from_json(data) for data in _lowered(spec, arch)["launches"]]
    return HostKernel(spec, (tuple(launches),)), right_arrays(spec, points[0])


def null_launchers(hosts: Iterable[HostKernel], folder: Path) -> dict[str, Callable[..., None]]:
    """Launchers on the null driver by op, in one native library in `folder`."""
    path = folder / "launchers.so"
    kernels = list(hosts)
    path.write_bytes(compile_launchers(generate(kernels)))
    library = tvm_ffi.load_module(str(path))
    driver = library["null_driver"]()
    return {
        k.spec.op.name: library[f"bind_{k.spec.symbol}"](0, driver, *CPU, 0, 0, True)
        for k in kernels
    }


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
        start = time.time()
        threads(given.arch, given.lists)
        print(f"32 threads, {given.lists} launches each, {time.time() - start:.0f} s")
        return
    for name in given.ops or sorted(load_library()):
        start = time.process_time()
        host, right = hosted(get(name), given.arch)
        with tempfile.TemporaryDirectory() as folder:
            launcher = null_launchers([host], Path(folder))[name]
        launcher(*right)
        draw = random.Random(name)
        lists = (argument_list(draw, right) for _ in range(given.lists))
        taken = sum(attack(host.spec, launcher, arguments) for arguments in lists)
        launcher(*right)
        seconds = time.process_time() - start
        print(f"{name}: {given.lists} lists, {taken} taken, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
