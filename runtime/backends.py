"""What executes a bundle's kernels: the CUDA driver, the virtual GPU, or nothing at all.

A backend turns one compiled specialization into a function of the op's tensors, inputs then
outputs. The launcher binary is the same for all.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import tvm_ffi

from .bundle import Bundle
from .errors import BundleError, check

CPU, CUDA = 1, 2  # DLPack device types
Function = Callable[..., None]


class Code:
    """A bundle with its launchers loaded.

    `check_elements`: whether a call first checks, on the device, the elements of index tensors that
    proofs make assumptions about.
    """

    def __init__(self, bundle: Bundle, check_elements: bool = True) -> None:
        self.bundle = bundle
        self.check_elements = check_elements

    @functools.cached_property
    def launchers(self) -> Any:
        """The native library, loaded when first needed."""
        return tvm_ffi.load_module(str(self.bundle.launchers()))

    def kernel(self, symbol: str, arch: str) -> dict[str, Any]:
        """The manifest's facts of one specialization on one architecture."""
        archs: dict[str, Any] = self.bundle.manifest["specializations"][symbol]["archs"]
        have = ", ".join(archs)
        check(arch in archs, f"{self.bundle.path}: {symbol}", got=arch, expected=f"one of {have}")
        return dict(archs[arch])

    def bind(
        self, symbol: str, plan: int, driver: int, device: tuple[int, int], image: bytes
    ) -> Function:
        """A launcher of `symbol` through one driver on one DLPack device."""
        held = ctypes.create_string_buffer(image)  # the driver copies it during the call
        address = ctypes.addressof(held)
        bind = self.launchers[f"bind_{symbol}"]
        image_and_size = (address, len(held))
        function: Function = bind(plan, driver, *device, *image_and_size, self.check_elements)
        return function


class Null:
    """Checks everything and launches nothing: measures what a call costs the host."""

    name = "null"
    native = True  # a call needs no Python

    def __init__(self, arch: str | None = None) -> None:
        self.arch = arch

    def function(self, code: Code, symbol: str, names: Sequence[str], index: int) -> Function:
        """The launcher of `symbol` for CPU tensors, or for CUDA tensors of device `index`."""
        kernel = code.kernel(symbol, self.arch or next(iter(code.bundle.archs)))
        device = (CPU, 0) if index < 0 else (CUDA, index)
        return code.bind(symbol, kernel["plan"], code.launchers["null_driver"](), device, b"")


class Cuda:
    """Real devices, through libcuda."""

    name = "cuda"
    native = True  # a call needs no Python

    def __init__(self, arch: str | None = None) -> None:
        self.arch = arch

    def function(self, code: Code, symbol: str, names: Sequence[str], index: int) -> Function:
        """The launcher of `symbol` on CUDA device `index`."""
        if index < 0:
            raise ValueError(
                f"{symbol}: got a tensor on cpu, expected cuda; "
                "load the bundle with backend='virtual' to run on a CPU"
            )
        return self.bind(code, symbol, (CUDA, index))

    def bind(self, code: Code, symbol: str, device: tuple[int, int]) -> Function:
        """The launcher of `symbol` on a DLPack device, loaded for what the device is."""
        driver = code.launchers["cuda_driver"]()
        arch, form = self.arch, "cubin"
        if arch is None:
            arch, form = code.bundle.arch_for(code.launchers["cuda_capability"](device[1]))
        kernel = code.kernel(symbol, arch)
        return code.bind(symbol, kernel["plan"], driver, device, code.bundle.read(kernel[form]))


class Virtual:
    """The virtual GPU: executes the bundle's CUDA text for `arch` on CPU tensors."""

    name = "virtual"
    native = False  # a call needs no Python

    def __init__(self, arch: str | None = None) -> None:
        self.arch = arch

    def function(self, code: Code, symbol: str, names: Sequence[str], index: int) -> Function:
        """The launcher of `symbol`, with its tensors' memory made known for bounds checks."""
        from . import virtual

        if index >= 0:
            raise ValueError(f"{symbol}: got a tensor on cuda:{index}, expected cpu")
        arch = self.arch or next(iter(code.bundle.archs))
        kernel = code.kernel(symbol, arch)
        cuda = code.bundle.read(kernel["cuda"]).decode()
        launched = [launch["kernel"] for launch in kernel["launches"]]

        @functools.cache
        def bound(checked: bool) -> Function:
            library = bytes(virtual.build(cuda, launched, checked=checked, arch=arch))
            return code.bind(symbol, kernel["plan"], virtual.driver(), (CPU, 0), library)

        def run(*arrays: Any) -> None:
            launcher = bound(virtual.current_options().checked)
            shared = [_shared(x) if hasattr(x, "__dlpack__") else x for x in arrays]
            # What is no array, and a wrong number of them, is the launcher's to refuse.
            known = {
                n: x for n, x in zip(names, shared, strict=False) if isinstance(x, torch.Tensor)
            }
            with virtual.options(), virtual.registered(known):
                launcher(*shared)

        return run


def _shared(array: Any) -> torch.Tensor:
    """Another library's array as a tensor over the same memory. One that may not be written, such
    as JAX's, is an input like any other."""
    if isinstance(array, torch.Tensor):
        return array
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_dlpack(array)


BACKENDS = {backend.name: backend for backend in (Cuda, Virtual, Null)}


def choose(name: str, arch: str | None, bundle: Bundle) -> Cuda | Virtual | Null:
    """The backend called `name`; ``"auto"`` is cuda on a machine with a device, else virtual.

    Raises BundleError for an unknown name, an architecture the bundle lacks, or a first device
    nothing in the bundle runs on.
    """
    known = ["auto", *BACKENDS, "reference"]
    check(name in known, "backend", got=repr(name), expected=f"one of {', '.join(known)}")
    have = ", ".join(bundle.archs)
    fits = arch is None or arch in bundle.archs
    check(
        fits,
        f"{bundle.path}: architecture",
        got=arch,
        expected=f"one of {have}; run: tileproof build --arch {arch} -o {bundle.path}",
    )
    if name == "auto":
        name = "cuda" if _devices(bundle) else "virtual"
    if name == "cuda":
        launchers = Code(bundle).launchers
        count = launchers["cuda_devices"]()
        if count == 0:
            raise BundleError("CUDA devices: got none, expected one; load with backend='virtual'")
        if arch is None:
            bundle.arch_for(launchers["cuda_capability"](0))
    return BACKENDS[name](arch)


def _devices(bundle: Bundle) -> int:
    with contextlib.suppress(RuntimeError):  # no CUDA driver on this machine
        return int(Code(bundle).launchers["cuda_devices"]())
    return 0
