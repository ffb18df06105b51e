"""Kernels of a user's file in a bundle, those with tensor maps and clusters among them."""

from __future__ import annotations

import textwrap

import pytest
import torch

from tileproof.codegen.build import build
from tileproof.codegen.target import Target
from tileproof.codegen.user import specialize
from tileproof.dsl import ContractError
from tileproof.runtime import BundleError, load
from tileproof.runtime.bundle import read_manifest

SOURCE = """
    import tilelang.language as T

    def gemm(N=128, K=64):
        M = T.dynamic("m")

        @T.prim_func
        def kernel(
            C: T.Tensor((M, N), "float32"),
            A: T.Tensor((M, K), "float16"),
            B: T.Tensor((K, N), "float16"),
        ):
            with T.Kernel(N // 64, T.ceildiv(M, 64), threads=128) as (x, y):
                a, b = T.alloc_shared((64, 32), "float16"), T.alloc_shared((32, 64), "float16")
                c = T.alloc_fragment((64, 64), "float32")
                T.clear(c)
                for k in T.Pipelined(K // 32, num_stages=2):
                    T.copy(A[y * 64, k * 32], a)
                    T.copy(B[k * 32, x * 64], b)
                    T.gemm(a, b, c)
                T.copy(c, C[y * 64, x * 64])

        return kernel

    def gather(n=32):
        rows, m = T.dynamic("rows"), T.dynamic("m")

        @T.prim_func
        def kernel(
            X: T.Tensor((rows, n), "float32"),
            Idx: T.Tensor((m,), "int32"),
            Y: T.Tensor((m, n), "float32"),
        ):
            with T.Kernel(m, threads=32) as i:
                for j in T.Parallel(n):
                    Y[i, j] = X[Idx[i], j]

        return kernel

    @T.prim_func
    def pairs(a: T.Tensor((256, 128), "float32"), c: T.Tensor((256, 128), "float32")):
        with T.Kernel(4, threads=128, cluster_dims=(2, 1, 1)) as bx:
            mine = T.alloc_shared((64, 128), "float32")
            theirs = T.alloc_shared((64, 128), "float32")
            T.copy(a[bx * 64, 0], mine)
            T.cluster_sync()
            T.copy_cluster(mine, theirs, dst_block=T.block_rank_in_cluster() ^ 1)
            T.cluster_sync()
            T.copy(theirs, c[bx * 64, 0])

    @T.prim_func
    def whole(
        a: T.Tensor((256,), "float32"),
        b: T.Tensor((256,), "float32"),
        c: T.Tensor((256,), "float32"),
    ):
        with T.Kernel(8, threads=32) as bx:
            t = T.get_thread_binding()
            b[bx * 32 + t] = a[bx * 32 + t] * 2
            T.sync_grid()
            c[bx * 32 + t] = b[255 - bx * 32 - t]

    @T.prim_func
    def scaled(X: T.Tensor((64,), "float32"), s: T.int32, Y: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            for j in T.Parallel(64):
                Y[j] = X[j] * s

    @T.prim_func
    def reads_only(X: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            y = T.alloc_fragment((64,), "float32")
            T.copy(X, y)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(textwrap.dedent(SOURCE))
    return path


@pytest.fixture(scope="module")
def bundle(file, tmp_path_factory):
    gemm = specialize(Target(f"{file}:gemm", (("K", 96),)), {"dims": {"m": [0, 4096]}}, "sm_90a")
    facts = {"values": {"Idx": [0, "rows-1"]}, "dims": {"m": [0, 100], "rows": [1, 1000]}}
    gather = specialize(Target(f"{file}:gather"), facts, "sm_90a")
    out = tmp_path_factory.mktemp("bundle") / "mine"
    return build([gemm, gather], ["sm_80", "sm_90a"], out, jobs=1)


@pytest.fixture(scope="module")
def gangs(file, tmp_path_factory):
    """Kernels whose blocks wait for each other, which take sm_90."""
    specs = [specialize(Target(f"{file}:{name}"), None, "sm_90a") for name in ("pairs", "whole")]
    return build(specs, ["sm_90a"], tmp_path_factory.mktemp("bundle") / "gangs", jobs=1)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("m", [0, 1, 65, 130])
def test_a_matrix_product_runs_with_and_without_tensor_maps(bundle, arch, m):
    launches = read_manifest(bundle)["specializations"]["gemm"]["archs"][arch]["launches"]
    assert len(launches[0]["maps"]) == (0 if arch == "sm_80" else 2)
    A, B = torch.randn(m, 96, dtype=torch.float16), torch.randn(96, 128, dtype=torch.float16)
    got = load(bundle, backend="virtual", arch=arch).gemm(A, B)
    assert torch.allclose(got, A.float() @ B.float(), atol=96 * 2**-11)


def test_kept_tensor_maps_are_never_stale(bundle):
    """The same memory with other sizes, other memory with the same sizes, many of both."""
    library = load(bundle, backend="virtual", arch="sm_90a")
    B = torch.randn(96, 128, dtype=torch.float16)
    memory = [torch.randn(200, 96, dtype=torch.float16) for _ in range(3)]
    for m in (200, 7, 130, 7, 64, 200):
        for held in memory:
            A = held[:m]
            expected = A.float() @ B.float()
            assert torch.allclose(library.gemm(A, B), expected, atol=96 * 2**-11)
            held.copy_(held.flip(0))


def test_blocks_of_a_cluster_and_of_a_whole_grid_run_at_once(gangs):
    library = load(gangs, backend="virtual")
    a = torch.randn(256, 128)
    assert torch.equal(library.pairs(a).view(2, 2, 64, 128), a.view(2, 2, 64, 128).flip(1))
    b, c = library.whole(a[:, 0].contiguous())
    assert torch.equal(b, 2 * a[:, 0])
    assert torch.equal(c, b.flip(0))


def test_domains_and_element_contracts_are_checked(bundle):
    library = load(bundle, backend="virtual", arch="sm_80")
    X = torch.randn(50, 32)
    index = torch.tensor([3, 49, 0], dtype=torch.int32)
    assert torch.equal(library.gather(X, index), X[index.long()])
    index[1] = 50
    with pytest.raises(RuntimeError, match=r"Idx: got .*element"):
        library.gather(X, index)
    with pytest.raises(
        ValueError, match=r"gather: Idx.shape\[0\]: got m=101, expected m in 0..100"
    ):
        library.gather(X, torch.zeros(101, dtype=torch.int32))


def test_a_users_op_has_no_reference(bundle):
    with pytest.raises(BundleError, match="gemm: reference: got none, expected one"):
        load(bundle, backend="reference").gemm(
            torch.zeros(1, 96, dtype=torch.float16), torch.zeros(96, 128, dtype=torch.float16)
        )


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("scaled", {}, r"scaled: scalar parameters: got \['s'\], expected tensors only"),
        ("reads_only", {}, "reads_only: tensors: got none written, expected an output"),
        (
            "gather",
            {"inout": ["Y"]},
            r"gather: tensors: got \['Y'\] read and written, expected in ",
        ),
    ],
)
def test_what_no_op_can_be_is_refused(file, name, facts, words):
    with pytest.raises(ContractError, match=words):
        specialize(Target(f"{file}:{name}"), facts)
