"""Tensor maps as the CUDA driver encodes them, from and for CPU tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_BYTES = 128  # of a CUtensorMap


@dataclass(frozen=True, eq=False)
class TensorMap:
    """The arguments of cuTensorMapEncodeTiled, or of cuTensorMapEncodeIm2col if `pixels` are given.

    Dimensions are innermost first. `type`, `interleave`, `swizzle`, `l2` and `fill` are numbers of
    the driver's enumerations; `strides` are in bytes and leave out the innermost; `steps` are the
    element strides (all 1 if None).
    """

    tensor: torch.Tensor
    type: int
    extents: Sequence[int]
    strides: Sequence[int]
    box: Sequence[int] = ()
    steps: Sequence[int] | None = None
    lower: Sequence[int] = ()
    upper: Sequence[int] = ()
    pixels: int = 0
    channels: int = 0
    interleave: int = 0
    swizzle: int = 0
    l2: int = 0
    fill: int = 0

    def encode(self, library: ctypes.CDLL) -> ctypes.Array[ctypes.c_char]:
        """The CUtensorMap, 64-byte aligned. Raises ValueError where the driver would refuse."""
        memory = (ctypes.c_char * (_BYTES + 64))()
        map_ = (ctypes.c_char * _BYTES).from_buffer(memory, -ctypes.addressof(memory) % 64)
        rank = len(self.extents)
        extents = (ctypes.c_uint64 * rank)(*self.extents)
        strides = (ctypes.c_uint64 * max(rank - 1, 1))(*self.strides)
        steps = (ctypes.c_uint32 * rank)(*(self.steps or [1] * rank))
        tensor = (rank, ctypes.c_uint64(self.tensor.data_ptr()), extents, strides)
        how = (self.interleave, self.swizzle, self.l2, self.fill)
        if self.pixels:
            corners = ctypes.c_int * max(rank - 2, 1)
            lower, upper = corners(*self.lower), corners(*self.upper)
            pixel_box = (ctypes.c_uint32(self.channels), ctypes.c_uint32(self.pixels))
            code = library.vgpu_tensor_map_im2col(
                map_, self.type, *tensor, lower, upper, *pixel_box, steps, *how
            )
        else:
            box = (ctypes.c_uint32 * rank)(*self.box)
            code = library.vgpu_tensor_map_tiled(map_, self.type, *tensor, box, steps, *how)
        if code:
            raise ValueError(library.vgpu_tensor_map_error().decode())
        return map_
