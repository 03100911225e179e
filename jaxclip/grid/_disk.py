"""Files that survive a kill, and errors of the disk in words."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds a folder, which is made if need be, against other sweeps.

    The lock is the process's own, so that one that is killed leaves none behind. Gives
    whether the folder can be written to: one that cannot be may still be read.

    **Raises:**

    A `BlockingIOError` where another sweep holds it.
    """
    import fcntl  # not on Windows, where the rest of the package works

    with explained(path):
        file, writable = _open_lock(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise BlockingIOError(
            error.errno,
            f"Another sweep is writing to the store {str(path)!r}; wait for it, or "
            "take another folder",
        ) from error
    try:
        yield writable
    finally:
        os.close(file)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Says what an error of the disk means for the store in a folder."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            said = f"The disk of the store {str(path)!r} is full. Free space"
        elif error.errno in _READ_ONLY:
            said = f"The store {str(path)!r} cannot be written to. Allow it"
        else:
            raise
        message = (
            f"{said} and run the same sweep again: every chunk that was finished is "
            "kept, and it goes on from there"
        )
        raise OSError(error.errno, message) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """A file's content, or None where there is none or it is not as it was written."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a file that is there as a whole or not at all, safe on the disk."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1))
    sync(part)
    part.replace(path)
    sync(path.parent)


def digest(path: Path) -> str:
    """The checksum of a file; "" where there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def make_folders(folder: Path) -> None:
    """Makes a folder and those above it, each of them safe on the disk."""
    if not folder.exists():
        make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Returns when a file, or the list of names of a folder, is on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _open_lock(path: Path) -> tuple[int, bool]:
    name = path / "lock"
    try:
        make_folders(path)
        return os.open(name, os.O_RDWR | os.O_CREAT), True
    except OSError:
        if not name.exists():
            raise
        # A finished store on a disk that is read-only.
        return os.open(name, os.O_RDONLY), False
