"""DeepSeek-V4 on the kernels: patch transformers' model, run our own, write checkpoints to try."""

from .checkpoint import write_tiny_checkpoint, write_tiny_official_checkpoint
from .patch import Patch, patch
from .registry import register

__all__ = ["Patch", "patch", "register", "write_tiny_checkpoint", "write_tiny_official_checkpoint"]
