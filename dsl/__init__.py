"""How a kernel is declared: ops, dims, contracts, number formats. Needs no TileLang, Z3 or GPU."""

from .arch import ALL, ARCHS, Arch, arch
from .check import ContractError, check
from .dtypes import DTYPES, DType, dtype
from .facts import Facts, assume
from .registry import get, load_library
from .spec import (
    BoundTensor,
    Dim,
    In,
    InOut,
    Op,
    Out,
    Specialization,
    Tensor,
    Values,
    Variant,
    derived,
    dim,
    static,
)

__all__ = [
    "ALL",
    "ARCHS",
    "DTYPES",
    "Arch",
    "BoundTensor",
    "ContractError",
    "DType",
    "Dim",
    "Facts",
    "In",
    "InOut",
    "Op",
    "Out",
    "Specialization",
    "Tensor",
    "Values",
    "Variant",
    "arch",
    "assume",
    "check",
    "derived",
    "dim",
    "dtype",
    "get",
    "load_library",
    "static",
]
