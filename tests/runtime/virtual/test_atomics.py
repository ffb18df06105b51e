"""Atomics: every operation, type and vector form, returned values, orders, shared memory."""

import numpy as np
import pytest
import torch

from tileproof.runtime import virtual

from .support import run


def test_every_operation_applies_once_per_thread_of_concurrent_blocks():
    y = torch.tensor([0, 7, 1000, -1, 0, 0, 0, 1 << 20], dtype=torch.int32)
    run(
        "int* y",
        """
        unsigned* u = (unsigned*)y;
        int i = blockIdx.x * 32 + tid;
        atomicAdd(y, 1);
        atomicMax(y + 1, i);
        atomicMin(y + 2, i - 5);
        atomicAnd(y + 3, ~(1 << (i & 15)));
        atomicOr(y + 4, 1 << (i & 31));
        atomicXor(y + 5, 1 << (i % 3));
        atomicInc(u + 6, 9u);
        atomicSub(y + 7, 2);
        """,
        [y],
        grid=(8,),
        threads=3,
    )
    counts = [sum(i % 3 == k for i in range(256)) for k in range(3)]
    xor = sum((count & 1) << k for k, count in enumerate(counts))
    assert y.tolist() == [256, 255, -5, -65536, -1, xor, 256 % 10, (1 << 20) - 512]


def test_returned_values_are_what_was_replaced():
    old = torch.zeros(64, dtype=torch.int32)
    y = torch.zeros(4, dtype=torch.int32)
    run(
        "int* y, int* old",
        """
        old[tid] = atomicAdd(y, 1);
        old[32 + tid] = AtomicAddRet(y + 1, 2, 4);
        if (tid == 0) {
          y[2] = atomicCAS(y + 3, 5, 6) * 100 + atomicCAS(y + 3, 0, 8) * 10 + atomicExch(y + 3, 9);
        }
        """,
        [y, old],
        seed=2,
    )
    assert sorted(old[:32].tolist()) == list(range(32))
    assert sorted(old[32:].tolist()) == list(range(0, 64, 2))
    assert y.tolist() == [32, 64, 8, 9]


def test_a_decrement_wraps_at_zero_and_above_its_bound():
    y = torch.tensor([0, 50, 3], dtype=torch.int32)
    run("unsigned* y", "if (tid < 3) atomicDec(y + tid, 9u);", [y])
    assert y.tolist() == [9, 9, 2]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "float"),
        (torch.float64, "double"),
        (torch.float16, "half_t"),
        (torch.bfloat16, "bfloat16_t"),
        (torch.int64, "int64_t"),
    ],
)
def test_tilelang_forms_for_every_type_and_order(dtype, name):
    y = torch.tensor([0, -100, 100], dtype=dtype)
    seen = torch.zeros(3, 32, dtype=dtype)
    loads = torch.zeros(6, dtype=dtype)
    run(
        f"{name}* y, {name}* seen, {name}* loads",
        """
        for (int order = 0; order < 6; ++order) {
          AtomicAdd(y, tid + order, order);
          AtomicMax(y + 1, tid + order, order);
          AtomicMin(y + 2, tid + order, order);
        }
        __syncwarp();
        seen[tid] = AtomicAddRet(y, 1);
        seen[32 + tid] = AtomicMaxRet(y + 1, 40, 2);
        seen[64 + tid] = AtomicMinRet(y + 2, -3, 5);
        __syncwarp();
        if (tid == 0) {
          AtomicStore(loads, 5, 3);
          loads[1] = AtomicLoad(loads, 2);
        }
        """,
        [y, seen, loads],
    )
    total = 6 * sum(range(32)) + 32 * 15
    # 16-bit sums stay small enough to be exact up to rounding in the last steps of bf16
    if dtype not in (torch.bfloat16, torch.float16):
        assert y[0] == total + 32
        assert sorted(seen[0].tolist()) == [total + i for i in range(32)]
    assert y[1:].tolist() == [40, -3]
    assert set(seen[1].tolist()) == {36, 40}
    assert set(seen[2].tolist()) == {0, -3}
    assert loads.tolist() == [5, 5, 0, 0, 0, 0]


def test_16_bit_sums_round_every_step():
    torch.manual_seed(0)
    for dtype, name in ((torch.float16, "half_t"), (torch.bfloat16, "bfloat16_t")):
        x = torch.randn(100).to(dtype)
        y = torch.zeros(1, dtype=dtype)
        run(
            f"{name}* y, const {name}* x",
            "if (tid == 0) for (int i = 0; i < 100; ++i) AtomicAdd(y, x[i]);",
            [y, x],
        )
        want = torch.zeros((), dtype=dtype)
        for value in x:
            want = want + value
        assert torch.equal(y[0], want)


VECTORS = [
    ("half_t", torch.float16, 2, "half2"),
    ("bfloat16_t", torch.bfloat16, 2, "__nv_bfloat162"),
    ("float", torch.float32, 2, "float2"),
    ("half_t", torch.float16, 4, "uint2"),
    ("bfloat16_t", torch.bfloat16, 4, "uint2"),
    ("float", torch.float32, 4, "float4"),
]


@pytest.mark.parametrize(("name", "dtype", "count", "vector"), VECTORS)
def test_vector_adds(name, dtype, count, vector):
    x = torch.arange(1, 1 + count).to(dtype)
    source = x.float() * 2
    y, old = torch.zeros(count, dtype=dtype), torch.full((count,), -1.0, dtype=dtype)
    run(
        f"{name}* y, {name}* old, {name}* x, float* source",
        f"""
        if (tid == 0) {{
          AtomicAddx{count}(y, x);
          AtomicAddx{count}(y, x, 3);
          AtomicAddx{count}(y, {"source" if dtype == torch.float32 else "(const float*)source"});
          auto previous = AtomicAddx{count}Ret(y, x, 0);
          static_assert(std::is_same_v<decltype(previous), {vector}>, "the type TileLang returns");
          memcpy(old, &previous, sizeof previous);
        }}
        """,
        [y, old, x, source],
    )
    assert torch.equal(old, x * 4)
    assert torch.equal(y, x * 5)


def test_vectors_by_value():
    y = torch.zeros(8)
    h = torch.zeros(2, dtype=torch.float16)
    run(
        "float* y, half_t* h",
        """
        AtomicAddx2(y, make_float2(1.f, 2.f));
        AtomicAddx4(y + 4, make_float4(1.f, 2.f, 3.f, 4.f));
        atomicAdd((float2*)(y + 2), make_float2(5.f, 6.f));
        if (tid == 0) {
          AtomicAddx2(h, make_float2(1.f, 2.f));
          AtomicAddx2(h, tl::to_uint1(make_half2(half_t(3.f), half_t(4.f))));
        }
        """,
        [y, h],
    )
    assert y.tolist() == [32, 64, 160, 192, 32, 64, 96, 128]
    assert h.tolist() == [4, 6]


def test_atomics_on_shared_memory():
    y = torch.zeros(2, dtype=torch.int32)
    run(
        "int* y",
        """
        __shared__ int s[2];
        if (tid < 2) s[tid] = 0;
        __syncthreads();
        AtomicAdd(s, tid);
        AtomicOr(s + 1, 1 << tid % 8);
        __syncthreads();
        if (tid < 2) y[tid] = s[tid];
        """,
        [y],
        block=(128,),
        seed=4,
    )
    assert y.tolist() == [sum(range(128)), 255]


def test_a_thread_that_polls_lets_the_others_run():
    y = torch.zeros(3, dtype=torch.int32)
    run(
        "int* y",
        """
        if (tid == 0) { while (AtomicLoad(y, 2) == 0) {} y[2] = 7; }
        if (tid == 40) {
          while (atomicCAS(y + 1, 1, 2) != 1) __nanosleep(20);
          AtomicStore(y, 1, 3);
        }
        if (tid == 80) AtomicStore(y + 1, 1, 3);
        """,
        [y],
        block=(96,),
    )
    assert y.tolist() == [1, 2, 7]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("AtomicAdd(y, 1.f, 6);", "memory order 6, expected 0"),
        ("AtomicLoad(y, 3);", "atomic load with memory order 3"),
        ("AtomicAddx2(y + 1, make_float2(1.f, 2.f));", "8 bytes at the misaligned address"),
        ("AtomicAdd(y + 4, 1.f);", "y"),
    ],
)
def test_what_an_atomic_must_not_do(body, words):
    with pytest.raises(virtual.VirtualError, match=words):
        run("float* y", body, [torch.zeros(4)])


def test_nan_never_wins_an_atomic_extreme():
    y = torch.tensor([1.0, 1.0, np.nan])
    run(
        "float* y",
        "if (tid == 0) { AtomicMax(y, NAN); AtomicMin(y + 1, NAN); AtomicMax(y + 2, 3.f); }",
        [y],
    )
    assert y[:2].tolist() == [1, 1]
    assert y[2].isnan()
