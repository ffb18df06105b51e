"""Arrays that nobody can make: a DLPack tensor from whatever fields a test gives it."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

CPU = (1, 0)  # DLPack's device


class _Tensor(ctypes.Structure):
    """`DLManagedTensor` of dlpack.h, whose memory nobody has to free."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


@dataclass(frozen=True)
class Array:
    """`strides` in elements, `dtype` as code, bits and lanes; `data` 0 is a null pointer."""

    data: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: tuple[int, int, int]
    device: tuple[int, int] = CPU
    offset: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return -(-self.dtype[1] * self.dtype[2] // 8)

    @functools.cached_property
    def _tensor(self) -> tuple[_Tensor, Any]:
        """The C struct, and the sizes it points at; they live as long as the array."""
        rank = len(self.shape)
        sizes = (ctypes.c_int64 * (2 * rank))(*self.shape, *self.strides)
        at = ctypes.addressof(sizes)
        fields = rank, *self.dtype, at, at + 8 * rank, self.offset, None, None
        return _Tensor(self.data, *self.device, *fields), sizes

    def __dlpack__(self, **_: Any) -> Any:
        return _capsule(ctypes.addressof(self._tensor[0]), b"dltensor", None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device
