"""What malloc does with the memory of buffers. Process-wide; knows no buffers.

Does nothing where malloc is not glibc's. Source: malloc.h, mallopt(3).
"""

import ctypes

_libc = ctypes.CDLL(None)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 64 << 20
_MMAP_BYTES = 32 << 20


def keep_freed() -> None:
    """Let malloc keep the memory of freed buffers instead of handing it back each time.

    Otherwise every read of a megabyte may fault its pages in anew, which was measured to cost
    eight times the read itself.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def touch_ahead(size_bytes: int) -> None:
    """Have so much of malloc's memory in place, written to by this process, for what comes.

    It stays so while ``keep_freed`` holds; ``size_bytes`` is at most 32 MiB.
    """
    _libc.malloc.argtypes, _libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    _libc.free.argtypes, _libc.free.restype = [ctypes.c_void_p], None
    address = _libc.malloc(size_bytes)
    if address:
        ctypes.memset(address, 0, size_bytes)
        _libc.free(address)
