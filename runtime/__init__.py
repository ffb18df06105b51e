"""Loading and launching what a build made. Needs torch and TVM-FFI; never TileLang or Z3."""

from .errors import BundleError, MissingKernel
from .loader import Library, Operation, load
from .ops import use

__all__ = ["BundleError", "Library", "MissingKernel", "Operation", "load", "use"]
