"""Memory that parts of files can be mapped into, so that what lies on this host is neither copied nor held twice.

`Pages` is memory like any other: zero at first, writable, given back once nothing refers to it. A read of a whole chunk into a
part of it that consists of whole pages may map the chunk's file there instead (`client.colocated`). The map is private: who
writes into it changes his copy of the page and no file. All processes that map a chunk share one copy of it, the page cache's.

To touch a mapped page that can't be had, because the file was cut short or its disk can't read it, kills the process. So who
maps a file has the kernel bring all of it in, which is an error where touching would kill, before it looks; and the node never
changes a chunk's file. What can't be prevented: that the kernel drops a page for lack of memory, and the disk fails when it is
wanted again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Pages", "Place", "bring_in", "is_in_memory", "place_of"]

_MAP_FIXED: Final = 0x10
_MADV_POPULATE_READ: Final = 22  # Linux 5.14.
_BROUGHT_IN_BYTES: Final = 8 * 1024 * 1024  # By pieces of 2 MiB, 1 GiB from the disk took a fifth longer.
_FAILED: Final = ctypes.c_void_p(-1).value
# Called so, they let go of the GIL.
_libc = ctypes.CDLL(None, use_errno=True)
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
_CACHESTAT: Final = 451  # cachestat(2), on all architectures; Linux 6.5.
_Range = ctypes.c_uint64 * 2  # The first byte, and how many.
_Found = ctypes.c_uint64 * 5  # Pages in memory, and what else is said of them.
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]


class Pages(mmap.mmap):
    """`size` bytes, at least 1, that begin at a page."""

    def __new__(cls, size: int) -> Pages:
        return super().__new__(cls, -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@dataclass(frozen=True, slots=True)
class Place:
    """Part of `pages`, on pages of its own: so many bytes at an address.

    `pages` keeps them in memory.
    """

    pages: Pages
    address: int
    size: int

    def map(self, fd: int) -> None:
        """Put the first bytes of a file here; raises OSError. Nobody touches them before `populate`."""
        self._replace(mmap.MAP_PRIVATE, fd)

    def populate(self) -> None:
        """Have all of them in memory; raises OSError if that can't be, or is more than the kernel knows."""
        if _madvise(self.address, self.size, _MADV_POPULATE_READ):
            raise _last_error()

    def clear(self) -> None:
        """Make it plain memory again: zeros."""
        self._replace(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)

    def _replace(self, flags: int, fd: int) -> None:
        if _mmap(self.address, self.size, mmap.PROT_READ | mmap.PROT_WRITE, flags | _MAP_FIXED, fd, 0) == _FAILED:
            raise _last_error()


def place_of(buffer: memoryview) -> Place | None:
    """The place that a buffer is, or None if it is no part of `Pages` or has a page in common with another part."""
    pages, size = buffer.obj, len(buffer)
    if not isinstance(pages, Pages) or not size:
        return None
    address = _address(buffer)
    if address % mmap.PAGESIZE or (size % mmap.PAGESIZE and address + size != _address(memoryview(pages)) + len(pages)):
        return None
    return Place(pages, address, size)


def bring_in(fd: int, size: int) -> Iterator[None]:
    """Have the kernel read the first bytes of a file, in large pieces, which whoever maps it takes by one entry each.

    Yields after each piece. Raises OSError.
    """
    pages = Pages(size)
    place = Place(pages, _address(memoryview(pages)), size)
    place.map(fd)
    # A kernel without large pages refuses it, and reads all the same.
    _madvise(place.address, size, mmap.MADV_HUGEPAGE)
    for start in range(0, size, _BROUGHT_IN_BYTES):
        Place(pages, place.address + start, min(_BROUGHT_IN_BYTES, size - start)).populate()
        yield


def is_in_memory(fd: int, size: int, *, start: int = 0) -> bool:
    """Whether the kernel has these bytes of a file; where it does not say, whether it seems to."""
    found = _Found()
    if not _syscall(_CACHESTAT, fd, _Range(start, size), found, 0):
        return found[0] * mmap.PAGESIZE >= size
    # Too old a kernel, or a file of somebody else. To look at bytes may begin to read a little, but does not wait for it.
    byte = bytearray(1)
    try:
        return all(os.preadv(fd, [byte], offset, os.RWF_NOWAIT) for offset in (start, start + size // 2))
    except OSError:  # It has not, or it can't tell.
        return False


def _address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
