"""The virtual GPU: executes the CUDA text of a kernel literally, on CPU cores.

    from tileproof.runtime import virtual

    module = virtual.VirtualModule(cuda_text, ["rmsnorm_kernel"])
    module.launch("rmsnorm_kernel", grid=(m,), block=(128,), smem=512, args=[w, x, y, m])

Generated launchers reach it through `driver()`, the table of `runtime/csrc/driver.h`.
"""

from .compile import (
    CompileError,
    Signature,
    build,
    build_library,
    lines,
    signatures,
    use_portable_build,
)
from .counters import Counters, Counting, GlobalTraffic, SharedTraffic, counting
from .device import (
    SCHEDULES,
    VirtualError,
    VirtualModule,
    VirtualOptions,
    current_options,
    driver,
    options,
    registered,
)
from .roofline import CHIPS, Bound, Chip, bound
from .sanitizer import Place, RawFinding, Session
from .tensor_map import TensorMap

__all__ = [
    "CHIPS",
    "SCHEDULES",
    "Bound",
    "Chip",
    "CompileError",
    "Counters",
    "Counting",
    "GlobalTraffic",
    "Place",
    "RawFinding",
    "Session",
    "SharedTraffic",
    "Signature",
    "TensorMap",
    "VirtualError",
    "VirtualModule",
    "VirtualOptions",
    "bound",
    "build",
    "build_library",
    "counting",
    "current_options",
    "driver",
    "lines",
    "options",
    "registered",
    "signatures",
    "use_portable_build",
]
