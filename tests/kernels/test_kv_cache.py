"""kernels/kv_cache: every byte of a page, the way there and back, and what a kernel reads."""

import pytest
import torch

from tileproof.codegen import virtual
from tileproof.dsl import ContractError
from tileproof.kernels import kv_cache
from tileproof.kernels.kv_cache import (
    key_pages,
    kv_pages,
    read_keys,
    read_kv,
    write_keys,
    write_kv,
)


def rows(M, D, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(M, D, generator=draw).bfloat16()


@pytest.mark.parametrize(
    ("entries", "page"), [(1, 1152), (2, 1728), (32, 19008), (64, 37440), (128, 74880)]
)
def test_pages_are_those_of_flash_mla(entries, page):
    """584 bytes an entry, rounded up to whole 576."""
    layout = kv_pages(entries)
    assert layout.page == page == -(-entries * 584 // 576) * 576


def test_every_byte_of_a_kv_entry():
    """By hand: 448 codes, 64 bf16, then after all entries 7 exponents and a zero."""
    E, pages = 4, 3
    pool = kv_pages(E).pool(pages)
    x = torch.zeros(2, 512, dtype=torch.bfloat16)
    x[0, :448] = 448.0  # exponent 0, code 0x7E
    x[0, 64:128] = 3.5 * 2.0**10  # amax / 448 = 2^3
    x[0, 448:] = 1.0  # bf16 0x3F80
    x[1, 448] = -2.0  # 0xC000
    write_kv(x, torch.tensor([6, 1]), *kv_pages(E).views(pool))
    page = torch.zeros(pages, kv_pages(E).page, dtype=torch.uint8)
    first = page[1, 2 * 576 : 3 * 576]
    first[:448] = 0x7E
    first[448::2], first[449::2] = 0x80, 0x3F
    page[1, 4 * 576 + 2 * 8 :][:7] = torch.tensor([127, 130, 127, 127, 127, 127, 127])
    page[0, 576 + 449] = 0xC0
    page[0, 4 * 576 + 8 :][:7] = 105  # amax floored at 1e-4: 2^ceil(log2(1e-4 / 448)) = 2^-22
    assert torch.equal(pool, page)


def test_every_byte_of_a_key():
    E = 8
    pool = key_pages(E).pool(2)
    x = torch.zeros(1, 128, dtype=torch.bfloat16)
    x[0, 0], x[0, 1], x[0, 33] = 6.0, -1.0, 12.0
    write_keys(x, torch.tensor([11]), *key_pages(E).views(pool))
    page = torch.zeros(2, 68 * E, dtype=torch.uint8)
    page[1, 3 * 64] = 0x7 | 0xA << 4  # the even channel in the low half
    page[1, 3 * 64 + 16] = 0x7 << 4
    page[1, E * 64 + 3 * 4 :][:4] = torch.tensor([127, 128, 1, 1])
    assert torch.equal(pool, page)


@pytest.mark.parametrize("amax", [1e-5, 2.0**-14 * 448, 1e-4, 0.0273, 448.0])
def test_the_floor_is_on_amax_not_on_the_scale(amax):
    """FlashMLA's test quantiser floors the scale at 2^-13; the official code amax at 1e-4."""
    pool = kv_pages(1, 64, 8).pool(1)
    x = torch.zeros(1, 72, dtype=torch.bfloat16)
    x[0, 7] = amax
    write_kv(x, torch.tensor([0]), *kv_pages(1, 64, 8).views(pool))
    scale = 2.0 ** (int(pool[0, 80]) - 127)
    exact = max(x[0, 7].item(), 1e-4) / 448
    assert scale / 2 < exact <= scale


@pytest.mark.parametrize("sizes", [(64, 448, 64), (3, 64, 64), (5, 640, 8), (1, 64, 8)])
def test_there_and_back(sizes, seed):
    layout = kv_pages(*sizes)
    pool = torch.full((3, layout.page), 0xAB, dtype=torch.uint8)
    x = rows(2 * sizes[0], sum(sizes[1:]), seed)
    slot = torch.randperm(3 * sizes[0], generator=torch.Generator().manual_seed(seed))[: len(x)]
    slot[0] = -1
    views = layout.views(pool)
    write_kv(x, slot, *views)
    got = read_kv(*views, slot)
    q, s = kv_cache.reference.fp8_cast(x[:, : sizes[1]], 64)
    expected = torch.cat([kv_cache.reference.fp8_dequant(q, s, 64), x[:, sizes[1] :]], -1)
    expected[0] = 0
    assert torch.equal(got, expected)
    touched = 3 * layout.page - int((pool == 0xAB).sum())
    assert touched <= (len(x) - 1) * (sizes[1] + 2 * sizes[2] + sizes[1] // 64)


@pytest.mark.parametrize(("entries", "channels"), [(64, 128), (16, 32), (4, 256)])
def test_keys_there_and_back(entries, channels, seed):
    layout = key_pages(entries, channels)
    pool = layout.pool(2)
    x, slot = rows(entries, channels, seed), torch.arange(entries) + entries // 2
    slot[-1] = -1
    views = layout.views(pool)
    write_keys(x, slot, *views)
    expected = kv_cache.reference.fp4_simulate(x)
    expected[-1] = 0
    assert torch.equal(read_keys(*views, slot), expected)
    assert layout.page == entries * (channels // 2 + channels // 32)


@pytest.mark.parametrize(("entries", "channels"), [(64, 128), (16, 48)])
def test_fp8_keys_there_and_back(entries, channels, seed):
    layout = key_pages(entries, channels, fp8=True)
    views = layout.views(layout.pool(2))
    x, slot = rows(entries, channels, seed), torch.arange(entries) + entries // 2
    slot[-1] = -1
    write_keys(x, slot, *views)
    expected = kv_cache.reference.fp8_simulate(x, 128)
    expected[-1] = 0
    assert torch.equal(read_keys(*views, slot), expected)
    assert layout.page == entries * (channels + 1)


def test_pages_that_lie_apart_share_memory(seed):
    layout = kv_pages(2, 64, 64)
    wide = torch.zeros(3, layout.page + 384, dtype=torch.uint8)
    x = rows(6, 128, seed)
    write_kv(x, torch.arange(6), *layout.views(wide[:, 192 : 192 + layout.page]))
    assert not wide[:, :192].any() and not wide[:, 192 + layout.page :].any()
    packed = layout.pool(3)
    write_kv(x, torch.arange(6), *layout.views(packed))
    assert torch.equal(wide[:, 192 : 192 + layout.page], packed)


def _gather():
    """``rows[m] = entry slot[m]`` in bf16, zeros for -1; a block an entry."""
    import tilelang.language as T

    M, Z, E, V, R = T.dynamic("M"), T.dynamic("Z"), 4, 448, 64
    page = kv_pages(E, V, R).page
    read = kv_cache.kv_reader(T)

    @T.prim_func
    def kernel(
        nope: T.StridedTensor((Z, E, V), (page, V + 2 * R, 1), "float8_e4m3fn"),
        rope: T.StridedTensor((Z, E, R), (page // 2, V // 2 + R, 1), "bfloat16"),
        scale: T.StridedTensor((Z, E, V // 64), (page, 8, 1), "float8_e8m0fnu"),
        slot: T.Tensor((M,), "int32"),
        out: T.Tensor((M, V + R), "bfloat16"),
    ):
        with T.Kernel(M, threads=32) as m:
            lane = T.get_thread_binding()
            row = T.alloc_local((16,), "bfloat16")
            T.clear(row)
            if slot[m] >= 0:
                where = kv_cache.place(slot[m], E)
                if lane * 16 < V:
                    read(nope, scale, where[0], where[1], lane * 16, row)
                else:
                    for v in T.vectorized(16):
                        row[v] = rope[where[0], where[1], lane * 16 - V + v]
            for v in T.vectorized(16):
                out[m, lane * 16 + v] = row[v]

    return kernel


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_a_kernel_reads_what_was_written(arch, seed):
    layout = kv_pages(4)
    pool = layout.pool(3)
    views = layout.views(pool)
    write_kv(rows(12, 512, seed), torch.arange(12), *views)
    slot = torch.tensor([11, -1, 0, 5, 5, -1, 3], dtype=torch.int32)
    out = torch.empty(len(slot), 512, dtype=torch.bfloat16)
    virtual.compile(_gather(), arch)(*views, slot, out)
    assert torch.equal(out, read_kv(*views, slot))


def test_sizes_that_leave_entries_unaligned_are_refused():
    with pytest.raises(ContractError, match="FP8 channels: got 24, expected a multiple of 64"):
        kv_pages(64, 24, 8)
    with pytest.raises(ContractError, match="RoPE channels: got 4, expected a multiple of 8"):
        kv_pages(64, 64, 4)
    with pytest.raises(ContractError, match="entries of a page: got 0, expected at least 1"):
        kv_pages(0)
    with pytest.raises(ContractError, match="bytes of a page: got 204, expected a multiple of 16"):
        key_pages(3)
    with pytest.raises(ContractError, match="channels: got 16, expected a multiple of 32"):
        key_pages(16, 16)
    with pytest.raises(ContractError, match="channels: got 24, expected a multiple of 16"):
        key_pages(16, 24, fp8=True)


def test_a_pool_of_other_pages_is_refused():
    with pytest.raises(
        ContractError, match=r"pool: got .* \[2, 100\], expected uint8 \[pages, 37440"
    ):
        kv_pages(64).views(torch.zeros(2, 100, dtype=torch.uint8))
