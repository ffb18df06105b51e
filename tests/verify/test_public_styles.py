"""What kernels that nobody here wrote do, each in a small one of our own: no false alarms."""

import pytest
import tilelang
import tilelang.language as T
from tilelang.transform import PassConfigKey

from tileproof.codegen.lower import lower
from tileproof.codegen.target import as_prim_func
from tileproof.dsl import ContractError
from tileproof.verify import Verdict, prove_lowered

UNGUARDED = {"tl.disable_safe_memory_legalize": True, "tl.disable_warp_specialized": True}


def verdicts(kernel, arch="sm_80", **facts):
    lowered = lower(kernel, arch, pass_configs=UNGUARDED, keep_stages=True)
    report = prove_lowered(lowered, facts=facts, use_cache=False)
    assert not report.error
    return {name: p.verdict for name, p in report.properties.items()}, report


def early_return(last=False, nested=False):
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M,), "float32")):
        with T.Kernel(T.ceildiv(M, 32) + 1, threads=32) as block:
            m = block * 32 + T.get_thread_binding()
            if (m > M) if last else (m >= M):
                T.thread_return()
            if nested and m % 2 == 1:
                y[m] = 1.0
                T.thread_return()
            y[m] = 0.0

    return kernel


@pytest.mark.parametrize("nested", [False, True])
def test_a_thread_that_returned_does_nothing_more(nested):
    found, _ = verdicts(early_return(nested=nested))
    assert found["bounds"] is found["blocks"] is Verdict.PROVED
    found, report = verdicts(early_return(last=True, nested=nested))
    assert found["bounds"] is Verdict.REFUTED
    (example,) = report.properties["bounds"].counterexamples[:1]
    assert example.sizes == {"M": int(nested)} and example.confirmed


def test_a_return_inside_a_loop_is_unknown_by_name():
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M, 4), "float32")):
        with T.Kernel(M, threads=32) as m:
            for i in T.serial(4):
                if y[m, i] > 0.0:
                    T.thread_return()
                y[m, i] = 1.0

    found, report = verdicts(kernel)
    assert found["bounds"] is Verdict.UNKNOWN
    assert report.unmodelled == ["tirx.thread_return"]


@pytest.mark.parametrize("before", [False, True])
def test_after_a_return_inside_a_loop_nothing_is_refuted(before):
    """The store beyond the end never happens: each thread leaves in its first iteration."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(y: T.Tensor((M,), "float32")):
        with T.Kernel(M, threads=32) as m:
            if before:
                y[m + M] = 1.0
            for i in T.serial(4):
                if m + i < M:
                    T.thread_return()
                y[m + M] = 1.0

    found, report = verdicts(kernel)
    assert found["bounds"] is (Verdict.REFUTED if before else Verdict.UNKNOWN)
    assert [e.confirmed for e in report.properties["bounds"].counterexamples] == (
        [True, False] if before else [False]
    )


@pytest.mark.parametrize("guarded", [True, False])
def test_a_cast_to_an_unsigned_type_wraps(guarded):
    """-1 becomes 2^64 - 1, which the guard rejects; nothing has to fit."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(which: T.Tensor((M,), "int32"), y: T.Tensor((8,), "float32")):
        with T.Kernel(M, threads=1) as m:
            if not guarded or T.Cast("uint64", which[m]) < T.uint64(8):
                y[which[m]] = 0.0

    found, _ = verdicts(kernel, values={"which": [0, 7]}, none={"which": -1})
    assert found["overflow"] is Verdict.PROVED
    assert found["bounds"] is (Verdict.PROVED if guarded else Verdict.ALARM)


@pytest.mark.parametrize("inner", ["uint32", "uint8"])
def test_a_narrower_cast_wraps_what_a_wider_one_left(inner):
    """Up to 2^24 after the shift, so a uint8 of it says nothing about the rest."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(which: T.Tensor((M,), "int64"), y: T.Tensor((8,), "float32")):
        with T.Kernel(M, threads=1) as m:
            if T.Cast(inner, T.Cast("uint32", which[m] >> 40)) < T.Cast(inner, 8):
                y[which[m] >> 40] = 0.0

    found, _ = verdicts(kernel, values={"which": [0, (1 << 63) - 1]})
    assert found["bounds"] is (Verdict.PROVED if inner == "uint32" else Verdict.ALARM)


def test_rows_of_a_matrix_fragment_are_16_bytes_whatever_their_type():
    """ldmatrix counts 16-bit elements; of a float32 tile its row holds four."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(
        a: T.Tensor((M, 256), "float32"),
        b: T.Tensor((32, 256), "float32"),
        c: T.Tensor((M, 32), "float32"),
    ):
        with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
            left = T.alloc_shared((64, 64), "float32")
            right = T.alloc_shared((32, 64), "float32")
            out = T.alloc_fragment((64, 32), "float32")
            T.clear(out)
            for k in T.Pipelined(4, num_stages=2):
                T.copy(a[block * 64, k * 64], left)
                T.copy(b[0, k * 64], right)
                T.gemm(left, right, out, transpose_B=True)
            T.copy(out, c[block * 64, 0])

    lowered = lower(kernel, "sm_80", keep_stages=True)
    assert "ptx_ldmatrix" in lowered.cuda
    report = prove_lowered(lowered, use_cache=False)
    assert report.verdict is Verdict.PROVED


def wide(offset=0, predicate=False):
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 128), "float32"), y: T.Tensor((M, 128), "float32")):
        with T.Kernel(T.ceildiv(M, 2), threads=64) as block:
            m = block * 2 + T.get_warp_idx()
            c = T.get_lane_idx() * 4 + offset
            if predicate:
                T.stg128(y[m, c], T.ldg128(x[m, c], pred=m < M), pred=m < M)
            elif m < M:
                T.stg128(y[m, c], T.ldg128(x[m, c]))

    return kernel


@pytest.mark.parametrize("predicate", [False, True])
def test_wide_loads_and_stores_by_lane_and_warp(predicate):
    found, _ = verdicts(wide(predicate=predicate), written={"y": "once"})
    for name in ("bounds", "alignment", "blocks", "coverage"):
        assert found[name] is Verdict.PROVED, name
    found, _ = verdicts(wide(1, predicate), written={"y": "once"})
    assert found["bounds"] is found["alignment"] is Verdict.REFUTED


def test_rows_that_a_warp_exchanges_are_not_called_independent():
    """A lane that is a row of its own gets a value of the other rows by a shuffle."""
    M = T.dynamic("M")

    @T.prim_func
    def kernel(x: T.Tensor((M, 4), "float32"), y: T.Tensor((M, 4), "float32")):
        with T.Kernel(T.ceildiv(M, 32), threads=32) as block:
            m = block * 32 + T.get_thread_binding()
            value = T.alloc_var("float32")
            value = 0.0
            if m < M:
                value = x[m, 0]
            value = T.warp_reduce_sum(value)
            if m < M:
                for i in T.serial(4):
                    y[m, i] = value

    found, report = verdicts(kernel, batch=["M"])
    assert found["bounds"] is found["barriers"] is Verdict.PROVED
    assert found["determinism"] is not Verdict.PROVED
    assert any("tl.warp_reduce_sum" in r for r in report.properties["determinism"].reasons)


@tilelang.autotune(configs=[{"threads": 32}, {"threads": 64}])
@tilelang.jit
def tuned(N, threads=32):
    @T.prim_func
    def kernel(y: T.Tensor((N,), "float32")):
        with T.Kernel(T.ceildiv(N, threads), threads=threads) as block:
            if block * threads + T.get_thread_binding() < N:
                y[block * threads + T.get_thread_binding()] = 0.0

    return kernel


def test_a_kernel_that_is_tuned_is_taken_at_the_arguments_given():
    (launch,) = lower(as_prim_func(tuned, {"N": 100, "threads": 64}), "sm_80").launches
    assert launch.block[0] == 64


def test_a_tensor_that_may_be_left_out_has_its_shape_where_it_is_there():
    M, P = T.dynamic("M"), T.dynamic("P")

    @T.prim_func
    def kernel(x: T.StridedTensor((M, 8), (P, 1), "float32"), y: T.Tensor((M, 8), "float32")):
        with T.Kernel(M, threads=8) as m:
            y[m, T.get_thread_binding()] = 0.0

    found, _ = verdicts(kernel)
    assert found["overflow"] is Verdict.PROVED
    found, _ = verdicts(kernel, dims={"M": [0, 1 << 33], "P": [8, 8]})
    assert found["overflow"] is Verdict.REFUTED


def test_numbers_computed_in_registers_are_unknown_and_those_loaded_an_alarm():
    M = T.dynamic("M")

    def kernel(computed):
        @T.prim_func
        def main(x: T.Tensor((64,), "int32"), y: T.Tensor((M, 64), "float32")):
            with T.Kernel(M, threads=64) as m:
                place = T.alloc_var("int32")
                place = 0
                for i in T.serial(64):
                    if x[i] < x[T.get_thread_binding()]:
                        place = place + 1
                y[m, place if computed else x[0]] = 1.0

        return main

    assert verdicts(kernel(True))[0]["bounds"] is Verdict.UNKNOWN
    assert verdicts(kernel(False))[0]["bounds"] is Verdict.ALARM
    assert verdicts(kernel(False), values={"x": [0, 63]})[0]["bounds"] is Verdict.PROVED


def test_a_tensor_is_called_by_its_own_name_where_the_kernel_reshapes_it():
    M = T.dynamic("M")

    def kernel(last):
        @T.prim_func
        def main(y: T.Tensor((M, 2), "int64")):
            with T.Kernel(T.ceildiv(M, 32), threads=64) as block:
                flat = T.reshape(y, (M * 2,))
                i = block * 64 + T.get_thread_binding()
                if (i <= M * 2) if last else (i < M * 2):
                    flat[i] = 0

        return main

    found, _ = verdicts(kernel(False))
    assert found["bounds"] is found["determinism"] is Verdict.PROVED
    assert verdicts(kernel(True))[0]["bounds"] is Verdict.REFUTED


@tilelang.jit(pass_configs={PassConfigKey.TL_DISABLE_SAFE_MEMORY_ACCESS: True})
def scaled(x, factor: float = 2.0):
    M, N = T.const("M, N")
    x: T.Tensor((M, N), "float32")
    y = T.empty((M, N), "float32")
    with T.Kernel(M, threads=32) as m:
        for i in T.serial(T.ceildiv(N, 32)):
            if i * 32 + T.get_thread_binding() < N:
                y[m, i * 32 + T.get_thread_binding()] = (
                    x[m, i * 32 + T.get_thread_binding()] * factor
                )
    return y


def test_a_jit_function_in_eager_style_takes_its_sizes_as_arguments():
    kernel = as_prim_func(scaled, {"M": 3, "N": 40}, arch_name="sm_80")
    found, _ = verdicts(kernel)
    assert found["bounds"] is Verdict.PROVED
    with pytest.raises(ContractError, match=r"got \['L'\], expected among \['factor', 'M', 'N'\]"):
        as_prim_func(scaled, {"M": 3, "N": 40, "L": 1})
    with pytest.raises(ContractError, match="constexpr variable `N`"):
        as_prim_func(scaled, {"M": 3})


def test_a_factory_that_asks_for_its_target_gets_the_architecture():
    def factory():
        from tilelang.backend.target import determine_target

        threads = 64 if "sm_90" in str(determine_target(return_object=True)) else 32

        @T.prim_func
        def kernel(y: T.Tensor((64,), "float32")):
            with T.Kernel(64 // threads, threads=threads) as block:
                y[block * threads + T.get_thread_binding()] = 0.0

        return kernel

    for arch, threads in (("sm_80", 32), ("sm_90a", 64)):
        (launch,) = lower(as_prim_func(factory, arch_name=arch), arch).launches
        assert launch.block[0] == threads
