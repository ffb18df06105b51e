"""Element types by the short names used in every declaration, manifest and report."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check


@dataclass(frozen=True)
class DType:
    """One element type. `bits` per element; `code` is the DLPack type code."""

    name: str
    bits: int
    code: int
    tilelang: str
    torch: str

    @property
    def bytes(self) -> int:
        """Bytes per element; sub-byte types round up (they are addressed as packed bytes)."""
        return max(1, self.bits // 8)


# DLPack codes: int 0, uint 1, float 2, bfloat 4, float8_e4m3fn 10, float8_e8m0fnu 14, float4 17.
_TABLE = (
    DType("bool", 8, 6, "bool", "bool"),
    DType("i8", 8, 0, "int8", "int8"),
    DType("u8", 8, 1, "uint8", "uint8"),
    DType("i32", 32, 0, "int32", "int32"),
    DType("i64", 64, 0, "int64", "int64"),
    DType("f16", 16, 2, "float16", "float16"),
    DType("bf16", 16, 4, "bfloat16", "bfloat16"),
    DType("f32", 32, 2, "float32", "float32"),
    DType("f64", 64, 2, "float64", "float64"),
    DType("e4m3", 8, 10, "float8_e4m3fn", "float8_e4m3fn"),
    DType("ue8m0", 8, 14, "float8_e8m0fnu", "float8_e8m0fnu"),
    DType("e2m1", 4, 17, "float4_e2m1fn", "float4_e2m1fn_x2"),
)
DTYPES = {d.name: d for d in _TABLE}


def dtype(name: str) -> DType:
    """The type called `name`, e.g. ``"bf16"``. Raises ContractError listing the known names."""
    check(name in DTYPES, "element type", got=repr(name), expected=f"one of {', '.join(DTYPES)}")
    return DTYPES[name]
