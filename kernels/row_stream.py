"""What the kernels share: compile options, and the thread geometry of those that stream rows.

Geometry is a function of the row's width alone, never of the number of rows, so a row is always
reduced in the same order (spec §8).
"""

# These kernels read each byte once and are bound by memory bandwidth: plain vector loads saturate
# it, while tensor maps would cost host time at every launch and a warp of their own on the device.
# 32-byte vectors (sm_100a) would need pointers aligned to 32; our contract is 16.
# Guards are written in the kernels and proved. TileLang would add guards of its own wherever it
# cannot prove one redundant, which hides a wrong one: what is proved is what is written.
PASS_CONFIGS = {
    "tl.disable_tma_lower": True,
    "tl.disable_warp_specialized": True,
    "tl.disable_vectorize_256": True,
    "tl.disable_safe_memory_legalize": True,
}

# Products and sums round separately, so bits do not depend on what a compiler contracts. TileLang
# itself fuses `a + b * c` into one rounding on sm_100a only; kernels therefore store a product
# before they add it. The arithmetic stays far below the memory time.
# With these options TileLang has no use for what came after sm_80, but for wgmma (below), and for
# staging some casts in registers for Blackwell, which is left: a kernel is lowered once. Arithmetic
# on pairs of float32, which Blackwell has, is a matter of the text, written for each architecture.
OPTIONS = {"pass_configs": PASS_CONFIGS, "contract_fma": False, "alike": True}

# For matrix products: by mma.sync, which every architecture has; and by wgmma, where it is there.
MATRIX_OPTIONS = {
    **OPTIONS,
    "pass_configs": {**PASS_CONFIGS, "tl.disable_wgmma": True},
    "matrix": True,
}
WGMMA_OPTIONS = {**OPTIONS, "matrix": True}

VECTOR_BYTES = 16
THREADS = 128


def ceildiv(a: int, b: int) -> int:
    """Smallest integer not below ``a / b``."""
    return -(-a // b)


def bits(tilelang_dtype: str) -> int:
    """Width of a TileLang type: ``"bfloat16"`` → 16."""
    return int("".join(c for c in str(tilelang_dtype) if c.isdigit()))


def vector(tilelang_dtype: str) -> int:
    """Elements of one 16-byte access."""
    return VECTOR_BYTES * 8 // bits(tilelang_dtype)


def row_lanes(width: int, per_thread: int, most: int = THREADS) -> int:
    """Threads of one row, a power of two up to `most`; each takes `per_thread` elements at once."""
    return min(most, 1 << (ceildiv(width, per_thread) - 1).bit_length())
