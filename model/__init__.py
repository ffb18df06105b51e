"""Putting the kernels into models: patch transformers, write checkpoints to try it on."""

from .checkpoint import write_tiny_checkpoint
from .patch import Patch, patch

__all__ = ["Patch", "patch", "write_tiny_checkpoint"]
