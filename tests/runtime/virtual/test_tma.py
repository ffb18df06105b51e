"""Bulk asynchronous copies: layouts, edges, waits, and what the driver refuses to encode."""

import contextlib
import functools
from dataclasses import replace

import pytest
import torch

import tileproof
from tileproof.codegen.lower import lower
from tileproof.runtime import virtual
from tileproof.runtime.virtual import TensorMap

from .support import bits, kernel

MODES = [{"late": late, "seed": seed} for late in (False, True) for seed in (0, 1)]
TYPES = {torch.uint8: 0, torch.int32: 3, torch.float16: 6, torch.float32: 7, torch.bfloat16: 9}
SHARED = "extern __shared__ __align__(1024) char s[];"
MAP = "__grid_constant__ const CUtensorMap x"


def loads(name: str, issue: str, parameters: str = f"{MAP}, int bytes, int a, int b") -> str:
    """A kernel that issues loads into shared memory, waits for `bytes` and dumps what is there."""
    body = f"""{SHARED}
    __shared__ __align__(16) uint64_t memory[1];
    if (tid == 0) {{
      tl::prefetch_tma_descriptor(x);
      tl::mbarrier_init(memory[0], 1); tl::fence_barrier_init();
      tl::mbarrier_arrive_expect_tx(memory[0], bytes);
      {issue};
    }}
    __syncthreads();
    tl::mbarrier_wait(memory[0], 0);
    for (int i = tid; i < bytes; i += 32) y[i] = s[i];
    """
    return kernel(f"char* y, {parameters}", body, name)


def stores(name: str, issue: str, parameters: str = MAP) -> str:
    """A kernel that fills shared memory with 0, 1, 2, … and issues stores from it."""
    body = f"""{SHARED}
    for (int i = tid; i < 1024; i += 32) ((float*)s)[i] = (float)i;
    __syncthreads();
    tl::fence_proxy_async();
    if (tid == 0) {{ {issue} }}
    """
    return kernel(parameters, body, name)


BULK = "char* y, const float* x, int bytes, int a, int b"
SOURCES = [
    loads("load1", "tl::tma_load(x, memory[0], s, a)"),
    loads("load2", "tl::tma_load<tl::CacheHintSm90::EVICT_FIRST>(x, memory[0], s, a, b)"),
    loads("load5", "tl::tma_load(x, memory[0], s, a, b, 1, -1, 1)"),
    loads("im2col", "tl::tma_load_im2col(x, memory[0], s, 0, -1, a - 1, b, 2, 1)"),
    loads("gather", "tl::tma_load_gather4(x, memory[0], s, a, 3, -1, 5, b)"),
    loads("bulk", "tl::tma_load(s, x + a, memory[0], bytes)", "const float* x, int bytes, int a")
    .replace("tl::prefetch_tma_descriptor(x);", ""),
    stores("store", "tl::tma_store(x, s, 2, -1); tl::tma_store_arrive(); tl::tma_store_wait<0>();"),
    stores("add", """tl::tma_store_add(x, s, 2, -1); tl::tma_store_arrive();
                     tl::tma_store_add(x, s, 2, -1); tl::tma_store_arrive();
                     tl::tma_store_wait<0, false>();"""),
    stores("scatter", """tl::tma_store_scatter4(x, s, 0, 3, -1, 5, 0); tl::tma_store_arrive();
                         tl::tma_store_wait<0>();"""),
    stores("put", """tl::tma_store(x, s, 64); tl::tma_store_add((float*)s + 4, x, 32);
                     tl::tma_store_arrive(); tl::tma_store_wait<0>();""", "float* x"),
    stores("hasty", "tl::tma_store(x, s, 2, -1); tl::tma_store_arrive();"),
    # Overwrites the source when at most one, then none of two stores may still be reading it.
    stores("reuse", """
        tl::tma_store(x, s, 16); tl::tma_store_arrive();
        tl::tma_store(x + 4, s + 16, 16); tl::tma_store_arrive();
        tl::tma_store_wait<1, true>(); *(float4*)s = {-1, -1, -1, -1};
        *(float4*)(s + 16) = {-2, -2, -2, -2};
        tl::tma_store_wait<0, true>();""", "float* x"),
]  # fmt: skip


@functools.cache
def module() -> virtual.VirtualModule:
    return virtual.VirtualModule("".join(SOURCES), checked=True)


def launch(name: str, args: list, **options) -> None:
    module().launch(name, (1,), (32,), 32768, args, options=virtual.VirtualOptions(**options))


def tensor_map(x: torch.Tensor, box: tuple, **more) -> TensorMap:
    """Of a tensor whose innermost dimension is contiguous; `box` innermost first."""
    strides = [s * x.element_size() for s in x.stride()][::-1][1:]
    return TensorMap(x, TYPES[x.dtype], x.shape[::-1], strides, box, **more)


def load(name: str, map_: TensorMap, count: int, a: int = 0, b: int = 0, **options):
    dtype = map_.tensor.dtype
    y = torch.zeros(count * dtype.itemsize, dtype=torch.int8)
    launch(name, [y, map_, len(y), a, b], **options)
    return y.view(dtype)


# Where the 16-byte chunks of each 128-byte line of shared memory come from, from the swizzle
# figures of the PTX manual, over the 8 lines of a pattern.
FIGURES = {
    1: ["01234567", "10325476"],
    2: ["01234567", "10325476", "23016745", "32107654"],
    3: ["01234567", "10325476", "23016745", "32107654",
        "45670123", "54761032", "67452301", "76543210"],
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("swizzle", [0, 1, 2, 3])
def test_swizzles_are_the_manuals(swizzle, mode):
    x = torch.arange(64 * 64).half().view(64, 64)
    width = {0: 64, 1: 16, 2: 32, 3: 64}[swizzle]
    got = load("load2", tensor_map(x, (width, 32), swizzle=swizzle), width * 32, 0, 8, **mode)
    lines = x[8:40, :width].reshape(-1, 8, 8)  # line, chunk, element
    if swizzle:
        figure = FIGURES[swizzle]
        order = [[int(c) for c in figure[i % len(figure)]] for i in range(len(lines))]
        lines = torch.stack([line[chunks] for line, chunks in zip(lines, order, strict=True)])
    assert torch.equal(got, lines.flatten())


@pytest.mark.parametrize("mode", MODES)
def test_elements_outside_the_tensor_are_filled(mode):
    x = torch.randn(10, 20)
    want = torch.nn.functional.pad(x, (4, 20, 4, 20))[1:9, 2:10]
    assert torch.equal(load("load2", tensor_map(x, (8, 8)), 64, -2, -3, **mode).view(8, 8), want)
    got = load("load2", tensor_map(x, (8, 8), fill=1), 64, 16, 5, **mode).view(8, 8)
    assert torch.equal(got[:5, :4], x[5:, 16:])
    assert got[5:].isnan().all() and got[:, 4:].isnan().all()
    far = load("load2", tensor_map(x, (8, 8)), 64, 1000, -1000, **mode)
    assert not far.any()


@pytest.mark.parametrize("mode", MODES)
def test_one_to_five_dimensions_and_element_strides(mode):
    x = torch.arange(3 * 4 * 5 * 6 * 8, dtype=torch.int32).view(3, 4, 5, 6, 8)
    got = load("load5", tensor_map(x, (4, 2, 3, 2, 2)), 96, 2, 3, **mode)
    want = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[1:3, 0:2, 1:4, 3:5, 2:6]
    assert torch.equal(got, want.flatten())
    assert torch.equal(load("load1", tensor_map(x.view(-1), (16,)), 16, 5), x.view(-1)[5:21])
    # A box of 7 rows, every third of them: 3 rows arrive.
    rows = x.view(-1, 8)
    got = load("load2", tensor_map(rows, (8, 7), steps=(5, 3)), 24, 0, 2, **mode)
    assert torch.equal(got.view(3, 8), rows[2:9:3])


@pytest.mark.parametrize("mode", MODES)
def test_im2col_walks_the_bounding_box(mode):
    n, h, w, c = 2, 6, 5, 16
    x = torch.randn(n, h, w, c).half()
    corners = {"lower": (-1, -1), "upper": (-1, -1), "pixels": 2 * w, "channels": c}
    got = load("im2col", tensor_map(x, (), **corners), 2 * w * c, 2, 1, **mode)
    # Filter tap (row 1, column 2) of a padded 3 x 3 convolution, output rows 2 and 3 of image 1.
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    assert torch.equal(got.view(2, w, c), padded[1, 3:5, 2 : 2 + w])
    strided = {**corners, "pixels": 9, "steps": (1, 2, 2, 1)}
    got = load("im2col", tensor_map(x, (), **strided), 9 * c, 0, 0, **mode)
    assert torch.equal(got.view(3, 3, c), padded[0, 1:7:2, 2:8:2])
    # Past the last row the walk goes on in the next image, past the last image it finds nothing.
    got = load("im2col", tensor_map(x, (), **corners), 2 * w * c, 5, 0, **mode).view(2, w, c)
    assert torch.equal(got[1], padded[1, 1, 2 : 2 + w])
    got = load("im2col", tensor_map(x, (), **corners), 2 * w * c, 5, 1, **mode).view(2, w, c)
    assert torch.equal(got[0], padded[1, 6, 2 : 2 + w]) and not got[1].any()


@pytest.mark.parametrize("mode", MODES)
def test_rows_by_number_and_plain_copies(mode):
    x = torch.randn(8, 32).bfloat16()
    got = load("gather", tensor_map(x, (16, 1)), 64, 8, 2, **mode).view(4, 16)
    assert torch.equal(got[[0, 2, 3]], x[[3, 5, 2], 8:24]) and not got[1].any()
    y, x = torch.zeros(64, dtype=torch.int8), torch.randn(64)
    launch("bulk", [y, x, 64, 8], **mode)
    assert torch.equal(y.view(torch.float32), x[8:24])


@pytest.mark.parametrize("mode", MODES)
def test_stores_write_what_lies_inside(mode):
    y = torch.full((4, 8), -1.0)
    launch("store", [tensor_map(y, (8, 3))], **mode)
    want = torch.full((4, 8), -1.0)
    want[:2, 2:] = torch.arange(24.0).view(3, 8)[1:, :6]
    assert torch.equal(y, want)
    y = torch.ones(4, 8)
    launch("add", [tensor_map(y, (8, 3))], **mode)
    want = torch.ones(4, 8)
    want[:2, 2:] += 2 * torch.arange(24.0).view(3, 8)[1:, :6]
    assert torch.equal(y, want)
    y = torch.full((6, 4), -1.0)
    launch("scatter", [tensor_map(y, (4, 1))], **mode)
    rows = torch.arange(16.0).view(4, 4)
    assert torch.equal(y[[3, 5, 0]], rows[[0, 2, 3]]) and (y[[1, 2, 4]] == -1).all()
    y = torch.zeros(16)
    launch("put", [y], **mode)
    assert torch.equal(y, torch.arange(16.0) + torch.tensor([4, 5, 6, 7, 8, 9, 10, 11] + [0] * 8))


def test_a_store_still_reading_its_source_sees_it_change():
    for late in (False, True):
        y = torch.zeros(8)
        launch("reuse", [y], late=late)
        assert y[:4].tolist() == [0, 1, 2, 3]
        assert y[4:].tolist() == ([-2] * 4 if late else [4, 5, 6, 7])
        with pytest.raises(virtual.VirtualError, match="may still read shared memory"):
            launch("hasty", [tensor_map(torch.zeros(4, 8), (8, 3))], late=late)


def failure(name: str, args: list, **options) -> str:
    with pytest.raises(virtual.VirtualError) as caught:
        launch(name, args, **options)
    return str(caught.value)


def test_mistakes_in_copies_are_named():
    x = torch.randn(16, 16)
    y = torch.zeros(512, dtype=torch.int8)
    for late in (False, True):
        # Too many bytes expected: the phase never ends.
        words = failure("load2", [y, tensor_map(x, (8, 8)), 272, 0, 0], late=late)
        assert "0 of 1 arrivals and 16 bytes outstanding" in words
    # Too few: the wait ends before the copy has, and the block before the other half.
    words = failure("load2", [y, tensor_map(x, (4, 8)), 112, 0, 0], late=False)
    assert "-16 bytes outstanding" in words
    words = failure("bulk", [y, x, 24, 0])
    assert "multiples of 16, got 24 bytes" in words
    words = failure("bulk", [y, x.flatten()[:16], 64, 4])
    assert "read of 64 bytes" in words and "argument 'x' of 64 bytes, at byte offset 16" in words
    # The map claims more rows than the tensor has.
    wrong = TensorMap(x, 7, (16, 32), (64,), (16, 32))
    assert "out of bounds: read of 64 bytes" in failure("load2", [y, wrong, 2048, 0, 0])
    words = failure("load1", [y, tensor_map(x, (8, 8)), 256, 0, 0])
    assert "tensor map has 2 dimensions, the copy gives 1 coordinates" in words
    words = failure("im2col", [y, tensor_map(x, (8, 8)), 256, 0, 0])
    assert "tensor map was encoded for tiles, the copy is im2col" in words
    with pytest.raises(TypeError, match="x must be a TensorMap"):
        launch("load2", [y, x, 256, 0, 0])


REFUSED = {
    "rank is 1 to 5, got 6": {"extents": [4] * 6, "strides": [16] * 5, "box": [4] * 6},
    "dimension 1 has 1 to 2^32 elements, got 0": {"extents": (16, 0)},
    "multiple of 16 below 2^40 bytes, got 36": {"strides": (36,)},
    "multiple of 16 below 2^40 bytes, got 1099511627776": {"strides": (1 << 40,)},
    "box dimension 1 is 1 to 256, got 257": {"box": (8, 257)},
    "box dimension 0 is 1 to 256, got 0": {"box": (0, 8)},
    "a box row is a multiple of 16 bytes, got 2 elements of 32 bits": {"box": (2, 8)},
    "a box row is at most the swizzle's 32 bytes, got 64": {"box": (16, 8), "swizzle": 1},
    "element stride 1 is 1 to 8, got 9": {"steps": (1, 9)},
    "interleaved layouts are not modelled, got interleave 2": {"interleave": 2},
    "swizzle 128b_atom_32b is not modelled": {"swizzle": 4},
    "there is no swizzle 7": {"swizzle": 7},
    "data type tfloat32 is not modelled": {"type": 11},
    "there is no data type 16": {"type": 16},
    "NaN fill needs a float type, got int32": {"type": 3, "fill": 1},
    "there is no L2 promotion 4": {"l2": 4},
    "im2col takes rank 3 to 5, got 2": {"pixels": 8, "channels": 8},
    "the global address is a multiple of 16": {"tensor": torch.zeros(64)[1:]},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_the_driver_refuses(words):
    fields = {
        "tensor": torch.zeros(16, 16), "type": 7, "extents": (16, 16), "strides": (64,),
        "box": (8, 8), **REFUSED[words],
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:
        load("load2", TensorMap(**fields), 64)
    assert words in str(caught.value)


# --- what TileLang generates by default ----------------------------------------------------------

tilelang = pytest.importorskip("tilelang")
import tilelang.language as T  # noqa: E402

M, N, K = 100, 192, 256


def gemm():
    """TMA in a ring of three stages, warps specialised, a TMA store at the end, a ragged M."""
    m = T.dynamic("m")

    @T.prim_func
    def gemm(
        a: T.Tensor((m, K), "float16"),
        b: T.Tensor((K, N), "float16"),
        c: T.Tensor((m, N), "float16"),
    ):
        with T.Kernel(N // 64, T.ceildiv(m, 64), threads=128) as (bx, by):
            a_tile = T.alloc_shared((64, 32), "float16")
            b_tile = T.alloc_shared((32, 64), "float16")
            c_tile = T.alloc_shared((64, 64), "float16")
            acc = T.alloc_fragment((64, 64), "float32")
            T.clear(acc)
            for k in T.Pipelined(K // 32, num_stages=3):
                T.copy(a[by * 64, k * 32], a_tile)
                T.copy(b[k * 32, bx * 64], b_tile)
                T.gemm(a_tile, b_tile, acc)
            T.copy(acc, c_tile)
            T.copy(c_tile, c[by * 64, bx * 64])

    return gemm


def conv():
    @T.prim_func
    def conv(
        x: T.Tensor((2, 8, 8, 64), "float16"),
        w: T.Tensor((9 * 64, 64), "float16"),
        y: T.Tensor((128, 64), "float16"),
    ):
        with T.Kernel(2, threads=128) as bx:
            x_tile = T.alloc_shared((64, 64), "float16")
            w_tile = T.alloc_shared((64, 64), "float16")
            acc = T.alloc_fragment((64, 64), "float32")
            T.clear(acc)
            for k in T.Pipelined(9, num_stages=2):
                T.im2col(x, x_tile, bx, k, 3, 1, 1, 1)
                T.copy(w[k * 64, 0], w_tile)
                T.gemm(x_tile, w_tile, acc)
            T.copy(acc, y[bx * 64, 0])

    return conv


@functools.cache
def lowered(arch: str):
    return lower(gemm(), arch)


def run_gemm(kernel_, **options) -> bool:
    torch.manual_seed(0)
    a, b = torch.randint(-4, 5, (M, K)).half(), torch.randint(-4, 5, (K, N)).half()
    c = torch.full((M, N), torch.nan).half()
    run = tileproof.virtual.compile(kernel_, checked=False)
    with virtual.options(**options):
        run(a, b, c)
    return torch.equal(bits(c), bits((a.double() @ b.double()).half()))


@pytest.mark.parametrize("arch", ["sm_90a", "sm_100a", "sm_120a"])
def test_gemm_as_tilelang_pipelines_it(arch):
    text = lowered(arch).cuda
    assert all(part in text for part in ("tma_load", "tma_store", "warpgroup_reg_alloc"))
    assert ("wgmma_ss" in text) == (arch == "sm_90a")
    for seed in range(4):
        for late in (False, True):
            assert run_gemm(lowered(arch), seed=seed, late=late)


def test_convolution_through_im2col():
    run = tileproof.virtual.compile(conv(), "sm_90a", checked=True)
    x, w = torch.randint(-2, 3, (2, 8, 8, 64)).half(), torch.randint(-2, 3, (576, 64)).half()
    y = torch.full((128, 64), torch.nan).half()
    run(x, w, y)
    filters = w.view(3, 3, 64, 64).permute(3, 2, 0, 1).float()
    want = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2).float(), filters, padding=1)
    assert torch.equal(y, want.permute(0, 2, 3, 1).reshape(128, 64).half())


BUGS = {
    "the consumer does not wait": ("mbarrier[(k_1 % 3)].wait(((k_1 % 6) / 3));", ""),
    "the consumer waits for the other phase": (".wait(((k_1 % 6)", ".wait(1 ^ ((k_1 % 6)"),
    "the producer does not wait": ("mbarrier[((k % 3) + 3)].wait((((k % 6) / 3) ^ 1));", ""),
    "the consumer does not arrive": ("mbarrier[((k_1 % 3) + 3)].arrive();", ""),
    "too few bytes are expected": (".expect_transaction(4096)", ".expect_transaction(2048)"),
    "too many bytes are expected": (".arrive_and_expect_tx(4096)", ".arrive_and_expect_tx(4112)"),
    "one arrival too many is expected": ("mbarrier[3].init(128)", "mbarrier[3].init(129)"),
    "the producer fills the wrong slot": ("a_tile)[((k % 3)", "a_tile)[(((k + 1) % 3)"),
    "the store is not waited for": ("tl::tma_store_wait<0, true>();", ""),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_every_bug_planted_in_the_gemm_shows_when_copies_are_late(bug):
    right, wrong = BUGS[bug]
    assert lowered("sm_90a").cuda.count(right) == 1
    broken = replace(lowered("sm_90a"), written=lowered("sm_90a").cuda.replace(right, wrong))
    with contextlib.suppress(virtual.VirtualError):
        assert not run_gemm(broken, late=True)


def test_the_race_checker_knows_mbarriers_and_bulk_copies():
    a, b, c = torch.randn(M, K).half(), torch.randn(K, N).half(), torch.zeros(M, N).half()

    def kinds(right: str, wrong: str) -> set[str]:
        broken = replace(lowered("sm_90a"), written=lowered("sm_90a").cuda.replace(right, wrong))
        (report,) = tileproof.sanitize(broken, a, b, c.clone()).kernels
        assert not report.reason
        return {finding.kind for finding in report.findings}

    assert kinds("", "") == set()
    assert kinds("tl::fence_proxy_async();", "") == {"proxy-fence"}
    assert "race" in kinds(*BUGS["the producer does not wait"])
