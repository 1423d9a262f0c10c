"""A writable view without a mount: what a mount does, by this process. Source: docs/api.md.

Modes and owners are kept but not enforced: a store's owner may read and change everything. Threads
go one at a time; bytes are read and made durable without holding the others up.
"""

import os
import stat
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, BinaryIO, Literal, TextIO, cast, overload

from dedupfs.api.failures import public
from dedupfs.api.reading import AnyPath, check_mode, names_of, shown_path, wrapped
from dedupfs.api.results import DiskUsage
from dedupfs.api.viewchanges import ViewChanges
from dedupfs.api.viewfile import ViewFile
from dedupfs.errors import ExistsError, IsADirectoryNameError, NotFoundError

if TYPE_CHECKING:
    from dedupfs.api.snapshot import Snapshot


class View(ViewChanges):
    """An open view; ``close`` it, or use ``with``. Nobody else can have it open meanwhile.

    What a method has done survives the end of this process; ``sync`` makes it survive a power cut.
    A view over all snapshots shows each as a directory; one over a snapshot shows what is in it.
    """

    # --- files -----------------------------------------------------------------------------------

    @overload
    def open(
        self,
        path: AnyPath,
        mode: Literal["rb", "wb", "ab", "xb", "r+b", "rb+", "w+b", "wb+", "a+b", "ab+"] = "rb",
        buffering: int = -1,
    ) -> BinaryIO: ...
    @overload
    def open(
        self,
        path: AnyPath,
        mode: Literal["r", "w", "a", "x", "rt", "wt", "at", "xt", "r+", "w+", "a+"],
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> TextIO: ...
    @public
    def open(
        self,
        path: AnyPath,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[bytes] | IO[str]:
        """Open a file as the built-in ``open`` does; ``buffering=0`` gives a ViewFile."""
        check_mode(mode)
        with self._opened.changing:
            handle, inode = self._open(path, mode)
            raw = ViewFile(self, handle, inode, shown_path(path), mode)
        try:
            return cast(IO[bytes], wrapped(raw, mode, buffering, encoding, errors, newline))
        except BaseException:
            raw.close()
            raise

    def _open(self, path: AnyPath, mode: str) -> tuple[int, int]:
        place = self._find(path, follow="x" not in mode)
        if place.attr is None:
            if "r" in mode:
                raise NotFoundError(f"no {shown_path(path)!r}")
            handle, attr = self._core.create(place.parent, place.name, 0o666, self._caller)
            return handle, attr.inode
        if "x" in mode:
            raise ExistsError(f"{shown_path(path)!r} exists")
        if stat.S_ISDIR(place.attr.mode):
            raise IsADirectoryNameError(f"{shown_path(path)!r} is a directory")
        flags = os.O_RDONLY if mode.strip("bt") == "r" else os.O_RDWR
        if "w" in mode:
            flags |= os.O_TRUNC
        is_root = self._caller.uid == 0
        return self._core.open(place.attr.inode, flags, privileged=is_root), place.attr.inode

    @public
    def read_bytes(self, path: AnyPath) -> bytes:
        """Return all of a file."""
        with self.open(path, "rb") as file:
            return file.read()

    @public
    def write_bytes(self, path: AnyPath, data: bytes | bytearray | memoryview) -> None:
        """Make ``data`` all of a file, which need not be there yet."""
        with self.open(path, "wb", 0) as file:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[file.write(rest) :]

    @public
    def write_text(self, path: AnyPath, text: str, encoding: str = "utf-8") -> None:
        """Make ``text`` all of a file, which need not be there yet."""
        self.write_bytes(path, text.encode(encoding))

    # --- keeping ---------------------------------------------------------------------------------

    @public
    def sync(self) -> None:
        """Wait until all that was done is safe from a power cut."""
        with self._opened.changing:
            self._core.fold()
            plan = self._core.plan_fsync(None)
        plan.run()

    @public
    def commit(
        self, name: str, *, tags: Mapping[str, object] | None = None, path: AnyPath = ""
    ) -> "Snapshot":
        """Freeze the view, or the directory ``path`` of it, as the snapshot ``name``.

        Costs what has changed. Files that are open for writing are taken as far as they were
        flushed.

        Raises:
            ExistsError (FileExistsError), UsageError (ValueError): the name.
        """
        from dedupfs.api.snapshot import Snapshot

        texts = {key: str(value) for key, value in (tags or {}).items()}
        with self._opened.changing:
            info = self._core.commit(name, path=b"/".join(names_of(path)), tags=texts)
        return Snapshot(self._store, info)

    @public
    def disk_usage(self) -> DiskUsage:
        """Return the room on the store's disk, or within the view's limit, whichever is less."""
        with self._opened.changing:
            found = self._core.statfs()
        total, free, available = (
            blocks * found.block_bytes
            for blocks in (found.blocks, found.blocks_free, found.blocks_available)
        )
        return DiskUsage(total, total - free, available)
