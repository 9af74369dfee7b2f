"""Unix socket paths of any length.

The kernel takes 107 bytes.  A longer path is reached through its open directory, /proc/self/fd/N,
which is short whatever the directory is called.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MAX_PATH_BYTES: Final = 107


@contextmanager
def short_address(path: str | os.PathLike[str]) -> Iterator[str]:
    """Give an address for bind() or connect() that means *path* and fits.  Valid inside the block.

    Raises:
        OSError: the directory of a long path cannot be opened, or its last component alone is too long.
    """
    text = os.fspath(path)
    if len(os.fsencode(text)) <= MAX_PATH_BYTES:
        yield text
        return
    directory, name = os.path.split(text)
    fd = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
