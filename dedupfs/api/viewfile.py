"""An open file of a view. Each write(2)-like call is done when it returns, as in a mount."""

import io
import os
from typing import TYPE_CHECKING

from dedupfs.api.failures import public
from dedupfs.namespace.view import AttrChange

if TYPE_CHECKING:
    from dedupfs.api.view import View

    WritableBuffer = bytearray | memoryview
    ReadableBuffer = bytes | bytearray | memoryview

_BYTES_AT_ONCE = 4 << 20


class ViewFile(io.RawIOBase):
    """The raw file that ``View.open`` puts its buffers on."""

    def __init__(self, view: "View", handle: int, inode: int, name: str, mode: str) -> None:
        self.name = name
        self.mode = mode
        self._view = view
        self._handle: int | None = handle
        self._inode = inode
        self._appends = "a" in mode
        self._reads = "r" in mode or "+" in mode
        self._writes = mode.strip("bt") != "r"
        self._position = self.size if self._appends else 0

    @property
    @public
    def size(self) -> int:
        """Bytes of the file now."""
        with self._view._opened.changing:
            return self._view._core.getattr(self._inode).size

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self._reads

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writes

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        self._require_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position, as in every file."""
        self._require_open()
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"whence is 0, 1 or 2, not {whence}")
        start = self.size if whence == os.SEEK_END else self._position if whence else 0
        if start + offset < 0:
            raise ValueError(f"negative seek position {start + offset}")
        self._position = start + offset
        return self._position

    @public
    def pread(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on; the position stays."""
        handle = self._require_open()
        if not self._reads:
            raise io.UnsupportedOperation("not open for reading")
        with self._view._opened.changing:
            plan = self._view._core.plan_read(handle, offset, size)
        return plan.run()

    def readinto(self, buffer: "WritableBuffer", /) -> int:  # type: ignore[override]
        """Fill ``buffer`` from the position on; return how many bytes there were."""
        done = 0
        with memoryview(buffer) as view, view.cast("B") as target:
            while done < len(target):
                data = self.pread(min(_BYTES_AT_ONCE, len(target) - done), self._position)
                if not data:
                    break
                target[done : done + len(data)] = data
                done += len(data)
                self._position += len(data)
        return done

    @public
    def write(self, data: "ReadableBuffer", /) -> int:  # type: ignore[override]
        """Write at the position, or at the end of a file that is appended to; all of ``data``."""
        handle = self._require_open()
        if not self._writes:
            raise io.UnsupportedOperation("not open for writing")
        done = 0
        with memoryview(data) as view, view.cast("B") as source, self._view._opened.changing:
            core = self._view._core
            while done < len(source):
                if self._appends:
                    self._position = core.getattr(self._inode).size
                part = bytes(source[done : done + _BYTES_AT_ONCE])
                done += core.write(handle, self._position, part)
                self._position += len(part)
            self._view._tidy()
        return done

    @public
    def truncate(self, size: int | None = None, /) -> int:
        """Make the file ``size`` bytes long, or end it at the position."""
        self._require_open()
        if not self._writes:
            raise io.UnsupportedOperation("not open for writing")
        size = self._position if size is None else size
        with self._view._opened.changing:
            self._view._core.setattr(self._inode, AttrChange(size=size))
        return size

    @public
    def sync(self) -> None:
        """Wait until what was written is safe from a power cut; flush buffers first."""
        self._require_open()
        with self._view._opened.changing:
            plan = self._view._core.plan_fsync(self._inode)
        plan.run()

    @public
    def close(self) -> None:
        """Close it; again does nothing."""
        handle, self._handle = self._handle, None
        super().close()
        if handle is None:
            return
        with self._view._opened.changing:
            if self._view.is_open:
                self._view._core.release(handle)
                self._view._tidy()

    def _require_open(self) -> int:
        if self._handle is None:
            raise ValueError("I/O operation on closed file")
        return self._handle
