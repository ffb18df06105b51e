"""The one cache directory of tileproof, and writing into it safely.

Safe means: under parallel builds and after `kill -9` a reader sees a whole file or none.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """The cache directory, or a sub-directory of it, created if missing.

    `TILEPROOF_CACHE` names it; else it is `tileproof` under `XDG_CACHE_HOME` or `~/.cache`.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("TILEPROOF_CACHE") or home / "tileproof")
    path = root.expanduser().joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it becomes `path` in one step."""
    temporary = _temporary(path)
    # Unlike mkstemp's, these permissions are those of any file its user makes.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def until_exit(path: Path) -> Path:
    """A path beside `path` for a file of this process alone, removed when it ends."""
    temporary = _temporary(path)
    atexit.register(temporary.unlink, missing_ok=True)
    return temporary


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes `data` to `path` (text as UTF-8) so that no reader sees a part of it."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock named after `path` against other processes and threads.

    The lock file `path`.lock stays behind; the kernel drops the lock itself if the holder dies.
    """
    with path.with_name(path.name + ".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
