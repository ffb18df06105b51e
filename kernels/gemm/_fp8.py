"""Tiles of ``x W^T`` with scaled codes: e4m3 times e4m3 or e2m1 (spec §6.3).

A row's columns come in blocks of one weight scale each, 128 (e4m3) or 32 (e2m1). The products of a
block are summed in float32 by one warp, 16 columns at a time from left to right; that sum times
its scales is added to the element, block after block. Neither the tile nor the number of tokens
changes that order, so a row's bits are its own.

float32 holds the products of codes, so nothing is rounded but the sums and, out of float32's range,
what the scales do. Where there are instructions that multiply e4m3, e4m3 × e4m3 goes to the tensor
cores as it is; docs/gemm.md says how they sum. Everything else goes as float16, which holds every
e4m3 and e2m1, subnormals and NaN included.
"""

from types import SimpleNamespace

from tileproof.dsl import ALL, check, derived, static
from tileproof.kernels.quant._blocks import FP4_GROUP, load_code
from tileproof.kernels.row_stream import VECTOR_BYTES, ceildiv

from ._tiles import ROWS

DEPTH = 128  # columns of a step, and of a group of e4m3
COLUMNS = static(32, 1 << 14, multiple=32)
OUT = {"out": ("bf16", "f32")}

TILE = {"width": 64, "threads": 128, "stages": 2}
# sm_80 has no instruction that reads e4m3, and CUDA's header takes dozens in its place
VARIANTS = (
    {**TILE, "archs": ("sm_80",), "instruction": False},
    {**TILE, "archs": tuple(a for a in ALL if a != "sm_80"), "instruction": True},
)


def groups(K: int) -> int:
    """Scales of a row of K columns, one for each 128."""
    return ceildiv(K, DEPTH)


def _activation_groups(K: int, B: int) -> int:
    check(B in (FP4_GROUP, DEPTH), "activations of a scale", got=B, expected="32 or 128")
    return ceildiv(K, B)


FP4_DIMS = {
    "N": ROWS,
    "K": COLUMNS,
    "B": static(FP4_GROUP, DEPTH, multiple=32),
    "G": derived(_activation_groups),
    "H": derived(lambda K: K // 2),
    "F": derived(lambda K: K // FP4_GROUP),
}


def rate(T, stored):
    """float32 of a scale; no choice of ours, which would have the prover follow every column."""
    return T.cast(stored, "float32")


def _half(T, bits, factor):
    return T.reinterpret(T.cast(bits, "uint16"), "float16") * T.float16(factor)


def e4m3_half(T, code):
    """float16 of an e4m3: its bits as exponent and mantissa are too small by 2^8; 127 is NaN."""
    bits = T.if_then_else((code & 127) == 127, 0x7E00, T.shift_left(code & 127, 7))
    return _half(T, bits | T.shift_left(code & 128, 8), 2.0**8)


def e2m1_half(T, code):
    """float16 of the e2m1 in the low four bits: likewise, by 2^14."""
    return _half(T, T.shift_left(code & 7, 9) | T.shift_left(code & 8, 12), 2.0**14)


def _widen(T, rows, columns, threads, instruction):
    """Macro ``(codes, tile)``: e4m3 ``codes(m, k)`` of [rows, 128] as float16, blocks of `columns`
    one above the other, by the architecture's `instruction` or by integers."""
    vector = 16
    across = DEPTH // vector

    @T.macro
    def device(codes, tile):
        if instruction:
            for m, k in T.Parallel(rows, DEPTH):
                tile[k // columns * rows + m, k % columns] = T.cast(codes(m, k), "float16")
        else:
            thread = T.get_thread_binding()
            held = T.alloc_local((vector,), "float8_e4m3fn")
            values = T.alloc_local((vector,), "float16")
            for step in T.unroll(rows * across // threads):
                m = (step * threads + thread) // across
                k = thread % across * vector
                for v in T.vectorized(vector):
                    held[v] = codes(m, k + v)
                for v in T.unroll(vector):
                    values[v] = e4m3_half(T, load_code(T, held[v]))
                for c in T.unroll(vector // 8):
                    for v in T.vectorized(8):
                        tile[k // columns * rows + m, k % columns + c * 8 + v] = values[c * 8 + v]

    return device


def _fetch(T, K, rows, threads, ring):
    """Macro ``(source, first, exists, g, codes)``: starts the copies of block g of columns of rows
    `first` on into slot ``g % ring``; zeros from column K on, and where no row ``exists(m)``."""
    across = DEPTH // VECTOR_BYTES

    @T.macro
    def device(source, first, exists, g, codes):
        thread = T.get_thread_binding()
        for step in T.unroll(rows * across // threads):
            m = (step * threads + thread) // across
            k = (step * threads + thread) % across * VECTOR_BYTES
            T.ptx_cp_async(
                T.access_ptr(codes[g % ring, m, k], "w", VECTOR_BYTES),
                T.access_ptr(source[first + m, g * DEPTH + k], "r", VECTOR_BYTES),
                VECTOR_BYTES,
                exists(m) & (g * DEPTH + k < K),
            )

    return device


def _multiply(T, tokens, width, threads, native):
    """Macro ``(x_codes, w_codes, slot, part)``: part = the products of a slot, summed from zero; of
    the codes themselves where tensor cores are `native` to them, else of float16."""
    widen_x = _widen(T, tokens, DEPTH, threads, instruction=False)
    widen_w = _widen(T, width, DEPTH, threads, instruction=False)

    @T.macro
    def codes(x_codes, w_codes, slot, part):
        T.gemm(x_codes[slot, :, :], w_codes[slot, :, :], part, transpose_B=True, clear_accum=True)

    @T.macro
    def halves(x_codes, w_codes, slot, part):
        x_tile = T.alloc_shared((tokens, DEPTH), "float16")
        w_tile = T.alloc_shared((width, DEPTH), "float16")
        widen_x(lambda m, k: x_codes[slot, m, k], x_tile)
        widen_w(lambda n, k: w_codes[slot, n, k], w_tile)
        T.gemm(x_tile, w_tile, part, transpose_B=True, clear_accum=True)

    return codes if native else halves


def fp8_device(T, K, tokens, width, threads, ring, native):
    """Device code of one tile of e4m3 × e4m3, as a namespace of macros.

    ``product(bring, scales, result)`` is the whole tile. ``bring(g, x_codes, w_codes)`` starts the
    copies of block g of columns, ``fetch_x`` and ``fetch_w`` of rows of either operand;
    ``scales(x_scales, w_scales)`` loads the codes of all scales, [tokens, groups] and [groups].

    The copies are our own: TileLang's pipeline does not fence them from what wgmma reads.
    """
    check(ring >= 2, "slots for blocks of columns", got=ring, expected="2 or more")
    ahead = ring - 1  # blocks that are on their way while one is multiplied
    multiply = _multiply(T, tokens, width, threads, native)

    @T.macro
    def product(bring, scales, result):
        x_codes = T.alloc_shared((ring, tokens, DEPTH), "float8_e4m3fn")
        w_codes = T.alloc_shared((ring, width, DEPTH), "float8_e4m3fn")
        # wider than it need be, so that what eight rows hold at g lies in as many banks
        x_scales = T.alloc_shared((tokens, groups(K) + VECTOR_BYTES), "float8_e8m0fnu")
        w_scales = T.alloc_shared((groups(K),), "float8_e8m0fnu")
        row = T.alloc_fragment((tokens,), "float32")
        part = T.alloc_fragment((tokens, width), "float32")
        acc = T.alloc_fragment((tokens, width), "float32")
        T.clear(acc)
        scales(x_scales, w_scales)
        for g in T.unroll(ahead):
            if g < groups(K):
                bring(g, x_codes, w_codes)
            T.ptx_commit_group()
        for g in T.serial(groups(K)):
            T.ptx_wait_group(ahead - 1)
            T.sync_threads()
            if g + ahead < groups(K):
                bring(g + ahead, x_codes, w_codes)
            T.ptx_commit_group()
            for m in T.Parallel(tokens):
                row[m] = rate(T, x_scales[m, g]) * rate(T, w_scales[g])
            multiply(x_codes, w_codes, g % ring, part)
            # a product of its own, so that no compiler makes one rounding of both
            for m, n in T.Parallel(tokens, width):
                part[m, n] *= row[m]
            for m, n in T.Parallel(tokens, width):
                acc[m, n] += part[m, n]
        for m, n in T.Parallel(tokens, width):
            result[m, n] = acc[m, n]

    return SimpleNamespace(
        fetch_x=_fetch(T, K, tokens, threads, ring),
        fetch_w=_fetch(T, K, width, threads, ring),
        product=product,
    )


def fp4_device(T, K, B, tokens, width, threads, stages, instruction=True):
    """Device code of one tile of e4m3, scaled per 1×B, × e2m1, scaled per 1×32.

    ``product(bring, result)`` is the whole tile; ``bring(k, x_codes, x_scales, w_codes, w_scales)``
    loads what belongs to the columns from k on: codes [tokens, 128] and, two a byte, [width, 64],
    scales [tokens, 128 / B] and [width, 4]; zeros beyond the ends.
    """
    blocks = DEPTH // FP4_GROUP
    own = DEPTH // B  # scales of a row of activations in a step
    held = FP4_GROUP // 2
    widen_x = _widen(T, tokens, FP4_GROUP, threads, instruction)

    @T.macro
    def widen_w(w_codes, w_tile):
        """A thread takes a block of a row at a time."""
        thread = T.get_thread_binding()
        packed = T.alloc_local((held,), "uint8")
        values = T.alloc_local((FP4_GROUP,), "float16")
        for step in T.unroll(width * blocks // threads):
            n = (step * threads + thread) // blocks
            b = thread % blocks
            for v in T.vectorized(held):
                packed[v] = w_codes[n, b * held + v]
            for v in T.unroll(held):
                values[2 * v] = e2m1_half(T, T.cast(packed[v], "int32"))
                values[2 * v + 1] = e2m1_half(T, T.shift_right(T.cast(packed[v], "int32"), 4))
            for c in T.unroll(FP4_GROUP // 8):
                for v in T.vectorized(8):
                    w_tile[b * width + n, c * 8 + v] = values[c * 8 + v]

    @T.macro
    def product(bring, result):
        x_codes = T.alloc_shared((tokens, DEPTH), "float8_e4m3fn")
        w_codes = T.alloc_shared((width, DEPTH // 2), "uint8")
        x_scales = T.alloc_shared((tokens, own), "float8_e8m0fnu")
        w_scales = T.alloc_shared((width, blocks), "float8_e8m0fnu")
        # blocks of columns one above the other
        x_tile = T.alloc_shared((blocks * tokens, FP4_GROUP), "float16")
        w_tile = T.alloc_shared((blocks * width, FP4_GROUP), "float16")
        row = T.alloc_shared((own, tokens), "float32")
        column = T.alloc_shared((blocks, width), "float32")
        part = T.alloc_fragment((tokens, width), "float32")
        acc = T.alloc_fragment((tokens, width), "float32")
        T.clear(acc)
        for g in T.Pipelined(groups(K), num_stages=stages):
            bring(g * DEPTH, x_codes, x_scales, w_codes, w_scales)
            widen_x(lambda m, k: x_codes[m, k], x_tile)
            widen_w(w_codes, w_tile)
            for i, m in T.Parallel(own, tokens):
                row[i, m] = rate(T, x_scales[m, i])
            for b, n in T.Parallel(blocks, width):
                column[b, n] = rate(T, w_scales[n, b])
            for b in range(blocks):
                T.clear(part)
                T.gemm(
                    x_tile[b * tokens : (b + 1) * tokens, :],
                    w_tile[b * width : (b + 1) * width, :],
                    part,
                    transpose_B=True,
                )
                for m, n in T.Parallel(tokens, width):
                    part[m, n] = part[m, n] * row[b * own // blocks, m] * column[b, n]
                for m, n in T.Parallel(tokens, width):
                    acc[m, n] += part[m, n]
        for m, n in T.Parallel(tokens, width):
            result[m, n] = acc[m, n]

    return SimpleNamespace(product=product)
