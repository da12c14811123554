"""Files as memory that outlives the process, without a descriptor in the user's process.

`mmap.mmap` keeps a duplicate descriptor (until 3.13), whose number a user's ``closerange`` frees
and a user's file may then get; so the mapping is made by libc itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import weakref
from pathlib import Path

_PROT_READ_WRITE = 3
_MAP_SHARED = 1
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
advise = _libc.madvise
"""madvise(2) of an address that `map_file` gave: 0 if it was done."""
advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Memory:
    """A new file of a fixed size, written through `buffer`.

    Raises OSError: FileExistsError, EFBIG, or ENOSPC now rather than a SIGBUS at the first store.
    """

    def __init__(self, path: Path, size: int, *, copy_on_write: bool = False) -> None:
        self.path = path
        self.size = size
        self.copy_on_write = copy_on_write
        """On btrfs or zfs preallocation reserves nothing: there `publish` writes the bytes."""
        if not _is_allowed(size):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            _reserve(descriptor, size)
            self._address = 0 if copy_on_write else map_file(descriptor, size, _PROT_READ_WRITE)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        self.buffer: memoryview = (
            memoryview(bytearray(size))
            if copy_on_write
            else memoryview((ctypes.c_char * size).from_address(self._address)).cast("B")
        )

    def publish(self, start: int, end: int) -> bool:
        """Write ``buffer[start:end]`` to the file, where it is not the file's own memory.

        False where there is no space for it.
        """
        if not _is_allowed(end):
            return False
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                return os.pwrite(descriptor, self.buffer[start:end], start) == end - start
            finally:
                os.close(descriptor)
        except OSError:
            return False

    def close(self) -> None:
        """Unmap. Who still stores into a view of `buffer` crashes: nobody may hold one."""
        address, self._address = self._address, 0
        self.buffer = memoryview(bytearray(0))
        if address:
            unmap(address, self.size)

    def release(self) -> None:
        """`close` as soon as nobody holds a view of `buffer` any more."""
        address, self._address = self._address, 0
        if address:
            weakref.finalize(self.buffer.obj, unmap, address, self.size).atexit = False
        self.buffer = memoryview(bytearray(0))


def _reserve(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    elif os.pwrite(descriptor, bytes(size), 0) < size:  # macOS; the next byte would have raised it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_allowed(size: int) -> bool:
    """Whether the process may write so large a file; if not, the kernel would send SIGXFSZ."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return limit == resource.RLIM_INFINITY or size <= limit


def map_file(descriptor: int, size: int, protection: int) -> int:
    """Address of a shared mapping, which stays when the descriptor is closed. Raises OSError."""
    address = _mmap(None, size, protection, _MAP_SHARED, descriptor, 0)
    if address is None or address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)


def unmap(address: int, size: int) -> None:
    """Undo `map_file`."""
    _munmap(address, size)
