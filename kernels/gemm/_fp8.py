"""Tiles of ``x W^T`` with scaled codes, e4m3 times e4m3 (spec §6.3), and what e4m3 times e2m1
(``_fp4.py``) shares with them.

A row's columns come in blocks of one weight scale each, 128 (e4m3) or 32 (e2m1). The products of a
block are summed in float32 by one warp or warpgroup, an instruction's columns at a time from left
to right; that sum times its scales is added to the element, block after block. Neither the tile nor
the number of tokens changes that order, so a row's bits are its own.

float32 holds the products of codes, so nothing is rounded but the sums and, out of float32's range,
what the scales do. Where there are instructions that multiply e4m3, codes go to the tensor cores as
e4m3, which every e2m1 is, too; docs/gemm.md says how they sum. Elsewhere they go as float16, which
holds every e4m3 and e2m1, subnormals and NaN included.
"""

from types import SimpleNamespace

from tileproof.dsl import check, static
from tileproof.kernels.quant._blocks import load_code
from tileproof.kernels.row_stream import (
    MATRIX_OPTIONS,
    VECTOR_BYTES,
    WGMMA_OPTIONS,
    ceildiv,
)

DEPTH = 128  # columns of a step, and of a group of e4m3
PIECE = VECTOR_BYTES  # of a row of codes, which a thread copies at once
COLUMNS = static(32, 1 << 14, multiple=32)
OUT = {"out": ("bf16", "f32")}

TILE = {"width": 64, "threads": 128}
# sm_80 has no instruction that reads e4m3, and CUDA's header takes dozens in its place
VARIANTS = (
    {**MATRIX_OPTIONS, "archs": ("sm_80",), "ring": 2, "native": False},
    {**MATRIX_OPTIONS, "archs": ("sm_89", "sm_100a", "sm_120a"), "ring": 3, "native": True},
    {**WGMMA_OPTIONS, "archs": ("sm_90a",), "ring": 3, "native": True},
)


def groups(K: int) -> int:
    """Scales of a row of K columns, one for each 128."""
    return ceildiv(K, DEPTH)


def rate(T, stored):
    """float32 of a scale; no choice of ours, which would have the prover follow every column."""
    return T.cast(stored, "float32")


def half(T, bits, factor):
    """float16 with these bits, times a power of two."""
    return T.reinterpret(T.cast(bits, "uint16"), "float16") * T.float16(factor)


def e4m3_half(T, code):
    """float16 of an e4m3: its bits as exponent and mantissa are too small by 2^8; 127 is NaN."""
    bits = T.if_then_else((code & 127) == 127, 0x7E00, T.shift_left(code & 127, 7))
    return half(T, bits | T.shift_left(code & 128, 8), 2.0**8)


def places(rows, depth, part, threads):
    """``(step, thread) -> (part, row, byte in it)`` of the pieces of `rows` rows of `depth` bytes,
    and the number of steps, where parts of rows lie one above the other, [depth / part, rows,
    part]. Eight threads in a row, whose pieces move at once, have pieces that lie in a row there;
    a warp has the next `depth` bytes of its rows, or 64.
    """
    across, parts = part // PIECE, depth // part
    down = 8 // across

    def place(step, thread):
        piece = step * threads + thread
        row = piece // (8 * parts) * down + piece // across % down
        return piece // 8 % parts, row, piece % across * PIECE

    return place, rows * across * parts // threads


def fetcher(T, columns, depth, part, rows, threads, ring):
    """Macro ``(source, at, exists, g, codes)``: starts the copies of block g of `depth` bytes of
    rows ``source[at(m)]`` of `columns` bytes into slot ``g % ring`` of [ring, depth / part, rows,
    part]; zeros beyond the last column, and where no row ``exists(m)``."""
    place, steps = places(rows, depth, part, threads)

    @T.macro
    def device(source, at, exists, g, codes):
        thread = T.get_thread_binding()
        for step in T.unroll(steps):
            p, m, k = place(step, thread)
            T.ptx_cp_async(
                T.access_ptr(codes[g % ring, p, m, k], "w", PIECE),
                T.access_ptr(source[(*at(m), g * depth + p * part + k)], "r", PIECE),
                PIECE,
                exists(m) & (g * depth + p * part + k < columns),
            )

    return device


def widener(T, part, rows, threads):
    """Macro ``(codes, slot, tile)``: a slot of e4m3 in parts of rows as float16 [rows, 128], by
    integers."""
    place, steps = places(rows, DEPTH, part, threads)

    @T.macro
    def device(codes, slot, tile):
        thread = T.get_thread_binding()
        held = T.alloc_local((PIECE,), "float8_e4m3fn")
        values = T.alloc_local((PIECE,), "float16")
        for step in T.unroll(steps):
            p, m, k = place(step, thread)
            for v in T.vectorized(PIECE):
                held[v] = codes[slot, p, m, k + v]
            for v in T.unroll(PIECE):
                values[v] = e4m3_half(T, load_code(T, held[v]))
            for c in T.unroll(PIECE // 8):
                for v in T.vectorized(8):
                    tile[m, p * part + k + c * 8 + v] = values[c * 8 + v]

    return device


def stream(T, K, ring):
    """Macro ``(bring, step)``: ``step(g)`` of every block of 128 columns in order, while what
    ``bring(g)`` started to copy for the next ring - 1 is on its way.

    The copies are our own: TileLang's pipeline does not fence them from what wgmma reads.
    """
    check(ring >= 2, "slots for blocks of columns", got=ring, expected="2 or more")
    ahead = ring - 1

    @T.macro
    def device(bring, step):
        for g in T.unroll(ahead):
            if g < groups(K):
                bring(g)
            T.ptx_commit_group()
        for g in T.serial(groups(K)):
            T.ptx_wait_group(ahead - 1)
            T.sync_threads()
            if g + ahead < groups(K):
                bring(g + ahead)
            T.ptx_commit_group()
            step(g)

    return device


def _multiply(T, tokens, width, threads, native):
    """Macro ``(x_codes, w_codes, slot, part)``: part = the products of a slot, summed from zero; of
    the codes themselves where tensor cores are `native` to them, else of float16."""
    widen_x = widener(T, DEPTH, tokens, threads)
    widen_w = widener(T, DEPTH, width, threads)

    @T.macro
    def codes(x_codes, w_codes, slot, part):
        T.gemm(
            x_codes[slot, 0, :, :],
            w_codes[slot, 0, :, :],
            part,
            transpose_B=True,
            clear_accum=True,
        )

    @T.macro
    def halves(x_codes, w_codes, slot, part):
        x_tile = T.alloc_shared((tokens, DEPTH), "float16")
        w_tile = T.alloc_shared((width, DEPTH), "float16")
        widen_x(x_codes, slot, x_tile)
        widen_w(w_codes, slot, w_tile)
        T.gemm(x_tile, w_tile, part, transpose_B=True, clear_accum=True)

    return codes if native else halves


def fp8_device(T, K, tokens, width, threads, ring, native):
    """Device code of one tile of e4m3 × e4m3, as a namespace of macros.

    ``product(bring, scales, result)`` is the whole tile. ``bring(g, x_codes, w_codes)`` starts the
    copies of block g of columns, ``fetch_x`` and ``fetch_w`` of rows of either operand;
    ``scales(x_scales, w_scales)`` loads the codes of all scales, [tokens, groups] and [groups].
    """
    blocks = stream(T, K, ring)
    multiply = _multiply(T, tokens, width, threads, native)

    @T.macro
    def add(g, x_codes, w_codes, x_scales, w_scales, row, part, acc):
        for m in T.Parallel(tokens):
            row[m] = rate(T, x_scales[m, g]) * rate(T, w_scales[g])
        multiply(x_codes, w_codes, g % ring, part)
        # a product of its own, so that no compiler makes one rounding of both
        for m, n in T.Parallel(tokens, width):
            part[m, n] *= row[m]
        for m, n in T.Parallel(tokens, width):
            acc[m, n] += part[m, n]

    @T.macro
    def product(bring, scales, result):
        x_codes = T.alloc_shared((ring, 1, tokens, DEPTH), "float8_e4m3fn")
        w_codes = T.alloc_shared((ring, 1, width, DEPTH), "float8_e4m3fn")
        # wider than it need be, so that what eight rows hold at g lies in as many banks
        x_scales = T.alloc_shared((tokens, groups(K) + VECTOR_BYTES), "float8_e8m0fnu")
        w_scales = T.alloc_shared((groups(K),), "float8_e8m0fnu")
        row = T.alloc_fragment((tokens,), "float32")
        part = T.alloc_fragment((tokens, width), "float32")
        acc = T.alloc_fragment((tokens, width), "float32")
        T.clear(acc)
        scales(x_scales, w_scales)
        blocks(
            lambda g: bring(g, x_codes, w_codes),
            lambda g: add(g, x_codes, w_codes, x_scales, w_scales, row, part, acc),
        )
        for m, n in T.Parallel(tokens, width):
            result[m, n] = acc[m, n]

    return SimpleNamespace(
        fetch_x=fetcher(T, K, DEPTH, DEPTH, tokens, threads, ring),
        fetch_w=fetcher(T, K, DEPTH, DEPTH, width, threads, ring),
        product=product,
    )
