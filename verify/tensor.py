"""The fifth generation of matrix units (sm_100a): tensor memory and what multiplies there.

A block's tensor memory has 128 lanes of 512 columns of 32 bits. It is allocated by columns; a warp
loads and stores in its own quarter of the lanes, so columns are what an access may miss. Sources:
PTX ISA, tcgen05; TileLang 0.1.15's ``tl_templates/cuda/tcgen_05.h`` and ``copy_sm100.h``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .intrinsics import (
    NOTHING,
    Columns,
    Effect,
    Operand,
    Touch,
    UnmodelledError,
    constant,
    elements,
)

_ORDER = "tensor memory"
PAIRS = "pairs of blocks that multiply together"
UNIT = "tcgen05"  # the engine of multiplies and of copies into tensor memory
_ROW = 32  # bytes of a row of an operand along K
_LANES = 128
# Bytes of an element by the name of a type; of 4 and 6 bits, 16 take 16 bytes.
_TYPES = {"fp16": 2, "bf16": 2, "tf32": 4, "int8": 1, "uint8": 1, "e4m3": 1, "e5m2": 1}
_LINES = {0: 16, 2: 128, 4: 64, 6: 32}  # bytes of a line by a descriptor's swizzle


def _allocate(args: list[Any]) -> Effect:
    # (where the address goes, columns), by a warp.
    columns = constant(args[1], "columns of tensor memory")
    touched = (Touch(args[0], "write"),)
    return Effect(touched, collective="warp", allocated=columns, unordered=_ORDER)


def _free(args: list[Any]) -> Effect:
    columns = constant(args[1], "columns of tensor memory")
    touched = (Touch(args[0], "read"),)
    return Effect(touched, collective="warp", allocated=-columns, unordered=_ORDER)


def plain(args: list[Any]) -> list[Any]:
    """The arguments of a load or store; what is added to the address is added to its column."""
    if type(args[3]).__name__ != "Add":
        return args
    address, beyond = args[3].a, args[3].b
    column = args[4] + (beyond.value if type(beyond).__name__ == "Cast" else beyond)
    return [*args[:3], address, column, *args[5:]]


def _move(args: list[Any]) -> tuple[Touch, Columns]:
    # (bits of a lane, repetitions, halves packed, address, first column, lanes, registers).
    args = plain(args)
    bits, count = (constant(a, "the shape of a tensor memory access") for a in args[:2])
    lanes = constant(args[5], "lanes of a tensor memory access") if len(args) == 7 else 32
    if (lanes, bits) not in {(n, b) for n in (16, 32) for b in (32, 64, 128, 256)} - {(16, 32)}:
        raise UnmodelledError(f"tensor memory accessed in {lanes} lanes of {bits} bits")
    words = count * bits // 32
    columns = words * (2 if constant(args[2], "packing") else 1)
    address = args[3]
    if type(address).__name__ != "BufferLoad" or constant(address.indices[0], "address") != 0:
        raise UnmodelledError("an address in tensor memory that was computed")
    registers = Touch(args[-1], "read", elements(args[-1], words * 4 * lanes // 32))
    return registers, Columns(address.buffer.data, args[4], columns, "read", "load")


def _load(args: list[Any]) -> Effect:
    registers, columns = _move(args)
    touched = (replace(registers, mode="write"),)
    return Effect(touched, collective="warp", columns=(columns,), unordered=_ORDER)


def _store(args: list[Any]) -> Effect:
    registers, columns = _move(args)
    stored = (replace(columns, mode="write", use="store"),)
    return Effect((registers,), collective="warp", columns=stored, unordered=_ORDER)


def _copy_scales(args: list[Any]) -> Effect:
    # (shared, address, first column): 32 rows of 16 bytes, into each quarter of the lanes.
    read = Touch(args[0], "read", elements(args[0], 512), align=16, asynchronous=True)
    columns = (Columns(args[1], args[2], 4, "write", "copy"),)
    touched = (read, Touch(args[1], "read"))
    return Effect(touched, collective="warp", columns=columns, unordered=_ORDER)


def _transpose(args: list[Any]) -> Effect:
    # Lane i reads element i of each of four rows of 32, and writes row i of 32 rows of four.
    rows = (Touch(args[0], "read", offset=32 * i, lane_step=1) for i in range(4))
    written = Touch(args[0], "write", 4, align=4, lane_step=4, after_warp=True)
    return Effect((*rows, written), collective="warp")


def _commit(args: list[Any]) -> Effect:
    # One lane arrives at the mbarrier once all multiplies and copies it issued before are done.
    order = "mbarriers" if len(args) == 1 else PAIRS
    return Effect((Touch(args[0], "write"),), collective="warp", unordered=order)


def line_of(args: list[Any]) -> int:
    """The swizzle's line in bytes, of the arguments that make a descriptor in shared memory."""
    base, absolute, mode = (constant(a, "a field of a descriptor") for a in args[4:7])
    if base or absolute or mode not in _LINES:
        raise UnmodelledError(f"a tcgen05 descriptor of swizzle {mode} and base offset {base}")
    return _LINES[mode]


def _fields(e: Any) -> int:
    """The constant bits of an instruction descriptor; scales are chosen by bits 4-5 and 29-30."""
    if type(e).__name__ == "IntImm":
        return int(e.value)
    name = str(e.op.name) if type(e).__name__ == "Call" else ""
    if name == "tirx.bitwise_or":
        return _fields(e.args[0]) | _fields(e.args[1])
    if name == "tirx.shift_left" and getattr(e.args[1], "value", None) in (4, 29):
        return 0
    raise UnmodelledError("a tcgen05 instruction descriptor known only at run time")


def of_pair(args: list[Any]) -> bool:
    """Whether two blocks multiply together."""
    return bool(constant(args[-1], "a flag of tcgen05.mma"))


def chosen_scales(e: Any) -> list[Any]:
    """What says which scales an instruction with these bits uses."""
    if type(e).__name__ == "IntImm":
        return []
    if str(e.op.name) == "tirx.shift_left":
        return [e.args[0]]
    return [number for part in e.args for number in chosen_scales(part)]


def multiply(name: str, args: list[Any]) -> tuple[list[Operand], list[Columns]]:
    """What a multiply reads in shared memory, and what it touches in tensor memory.

    The layouts of D are those of the PTX ISA: rows that do not fill the lanes are stacked with
    parts of the columns, except in a plain multiply of one block with 64 rows.
    """
    kind = str(args[0].value)
    if kind not in _TYPES:
        raise UnmodelledError(f"tcgen05.mma of {kind}")
    scaled, from_shared = "blockscaled" in name, not name.endswith("_ts")
    stationary = name.endswith("mma_ss") and bool(constant(args[13], "a flag of tcgen05.mma"))
    blocks = 2 if of_pair(args) else 1
    fields = _fields(args[7])
    m, n = (fields >> 24 & 31) * 16, (fields >> 17 & 63) * 8
    if m // blocks not in (32, 64, 128) or not n:
        raise UnmodelledError(f"tcgen05.mma of {m} rows and {n} columns")

    def operand(at: int, rows: int, mn_major: int) -> Operand:
        size = _TYPES[kind]
        lines, row = (_ROW // size, rows * size) if mn_major else (rows, _ROW)
        return Operand(args[at], args[at + 1], bool(mn_major), lines, row, unit=1)

    rows = m // blocks
    whole = rows == _LANES or (rows == 64 and not stationary and blocks == 1)
    columns = n if whole else n * rows // _LANES
    shape = f"{kind} {m}x{n}{' stationary' if stationary else ''}"
    result = Columns(args[5], args[6], columns, "read", shape)
    touched = [result, replace(result, mode="write")]
    read = [operand(3, n // blocks, fields >> 16 & 1)]
    if from_shared:
        read.append(operand(1, rows, fields >> 15 & 1))
    else:
        touched.append(Columns(args[1], args[2], _ROW // 4, "read", "a"))
    if scaled:
        touched.append(Columns(args[9], args[10], rows // 32, "read", "scale"))
        touched.append(Columns(args[11], args[12], -(-n // 32), "read", "scale"))
    return read, touched


TABLE: dict[str, Callable[[list[Any]], Effect]] = {
    "tl.ptx_init_tensor_memory": _allocate,
    "tl.ptx_deallocate_tensor_memory": _free,
    "tl.tcgen05_ld": _load,
    "tl.tcgen05_st": _store,
    "tl.ptx_tcgen05_cp_warpx4": _copy_scales,
    "tl.ptx_tcgen05_sf_warp_transpose": _transpose,
    "tl.tcgen05_mma_arrive": _commit,
    "tl.tcgen05_before_thread_sync": lambda _: NOTHING,
    "tl.tcgen05_after_thread_sync": lambda _: NOTHING,
}
MOVES = ("tl.tcgen05_ld", "tl.tcgen05_st")
MULTIPLIES = {f"tl.ptx_tcgen05_mma_{form}" for form in ("ss", "ts", "blockscaled_ss")}


def is_collective(name: str) -> bool:
    """Whether a call is one that a warp makes as one, of tensor memory."""
    return name in TABLE or name in MULTIPLIES
