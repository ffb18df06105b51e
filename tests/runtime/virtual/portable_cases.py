"""Kernels whose results must not depend on how this machine switches fibers and multiplies."""

import re

import torch

from tileproof.runtime.virtual import VirtualError

from .support import run

_TYPES = {  # operand type and registers of A and B, sums' type: for m16n8 and the usual k
    "f16": ("kFloat16", "kFloat32", 16, 4, 2),
    "f16 sums": ("kFloat16", "kFloat16", 16, 4, 2),
    "bf16": ("kBFloat16", "kFloat32", 16, 4, 2),
    "tf32": ("kTensorFloat32", "kFloat32", 8, 4, 2),
    "e4m3": ("kFloat8_e4m3", "kFloat32", 32, 4, 2),
    "int8": ("kInt8", "kInt32", 32, 4, 2),
}
_BARRIERS = """
    __shared__ float s[96];
    float v = x[tid];
    for (int i = 0; i < 40; ++i) {
      s[tid] = v;
      __syncthreads();
      v = v * 0.5f + s[(tid + 7 * i) % 96];
      if (i % 4 == 0) v += __shfl_xor_sync(0xffffffffu, v, 5);
      if (tid < 64) tl::__sync_thread_partial(1, 64);
      if (__syncthreads_or(v > 1e9f)) v = 0;
    }
    y[tid] = v;
"""
_DEADLOCK = "if (tid < 40) tl::__sync_thread_partial(1, 64); else if (tid < 64) __syncthreads();"


def _products() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    # Bytes below 0x70 are finite in every type, from the smallest subnormal numbers up.
    registers = torch.randint(0, 0x70, (32, 6, 4), generator=draw, dtype=torch.uint8)
    body = "unsigned in[6]; for (int i = 0; i < 6; ++i) in[i] = x[tid * 6 + i];"
    for i, (operand, sums, k, _, _) in enumerate(_TYPES.values()):
        kinds = ", ".join(f"tl::DataType::{kind}" for kind in (operand, operand, sums))
        register = {"kFloat32": "float", "kInt32": "int"}.get(sums, "unsigned")
        body += f"""{{
            {register} c[4] = {{}};
            tl::mma_sync<{kinds}, 16, 8, {k}, false, true>(c, in, in + 4);
            tl::mma_sync<{kinds}, 16, 8, {k}, false, true>(c, in, in + 2);
            for (int i = 0; i < 4; ++i) y[({i} * 32 + tid) * 4 + i] = ((unsigned*)c)[i];
        }}"""
    y = torch.zeros(len(_TYPES), 32, 4, dtype=torch.int32)
    run("unsigned* y, const unsigned* x", body, [y, registers.view(torch.int32)], checked=False)
    return dict(zip(_TYPES, y, strict=True))


def _halves() -> dict[str, torch.Tensor]:
    codes = torch.arange(1 << 16).to(torch.int16)
    wide, back = torch.zeros(1 << 16), torch.zeros(1 << 16, dtype=torch.int16)
    halfway = torch.arange(1 << 20).mul(4096).add(0x801).to(torch.int32).view(torch.float32)
    rounded = torch.zeros(1 << 20, dtype=torch.int16)
    body = """
        for (int i = tid; i < 65536; i += 32) {
          wide[i] = __half2float(__ushort_as_half(codes[i]));
          back[i] = __half_as_ushort(__float2half(wide[i]));
        }
        for (int i = tid; i < 1 << 20; i += 32)
          rounded[i] = __half_as_ushort(__float2half(halfway[i]));
    """
    parameters = "float* wide, unsigned short* back, const unsigned short* codes, "
    parameters += "unsigned short* rounded, const float* halfway"
    run(parameters, body, [wide, back, codes, rounded, halfway], checked=False)
    return {"wide": wide.view(torch.int32), "back": back, "rounded": rounded}


def results() -> dict[str, torch.Tensor | str]:
    """Bits and words, by what they are of."""
    found: dict[str, torch.Tensor | str] = {**_products(), **_halves()}
    x = torch.arange(96).float().cos()
    for checked in (False, True):
        for seed in range(3):
            y = torch.zeros(96)
            run(
                "float* y, const float* x",
                _BARRIERS,
                [y, x],
                block=(96,),
                seed=seed,
                checked=checked,
            )
            found[f"barriers, checked {checked}, seed {seed}"] = y
        for name, body in {
            "deadlock": _DEADLOCK,
            "lanes that disagree": "tid < 9 ? __shfl_sync(~0u, 1, 0) : (int)__ballot_sync(~0u, 1);",
            "out of bounds": "y[1ll << 40] = x[0];",
            "endless": "while (tid == 0) __syncthreads();",
        }.items():
            try:
                run(
                    "float* y, const float* x",
                    body,
                    [x.clone(), x],
                    block=(64,),
                    seconds=0.3,
                    checked=checked,
                )
            except VirtualError as error:
                found[f"{name}, checked {checked}"] = re.sub(
                    "0x[0-9a-f]{9,}.* of it", "ADDRESS", str(error)
                )
    return found
