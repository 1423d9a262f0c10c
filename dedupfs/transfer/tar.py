"""Snapshot (or a directory of one) -> PAX tar stream. Knows no file system.

Times in nanoseconds, xattrs (ACLs among them) as SCHILY.xattr.* records, hard links as links.
Holes are written as zeros. Source: pax(1) "pax Interchange Format", star(5).
"""

import io
import stat
import tarfile
from typing import IO

from dedupfs.errors import CorruptError, MissingRecordError, StoreError
from dedupfs.model import TreeEntry
from dedupfs.namespace.contents import load_recipe
from dedupfs.namespace.trees import TreeReader
from dedupfs.recipe import Recipe
from dedupfs.store import Store
from dedupfs.transfer.entries import entries_below, is_possible
from dedupfs.transfer.report import ExportReport, OnProblem, OnProgress, Problems, Progress, shown

COPY_BYTES = 4 << 20
_TOP = b"."
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
}


def export_tar(
    store: Store,
    root: TreeEntry,
    out: IO[bytes],
    *,
    top: TreeEntry | None = None,
    progress: OnProgress | None = None,
    on_error: OnProblem | None = None,
) -> ExportReport:
    """Write ``top`` (a directory below ``root``, or all of it) to ``out``.

    Raises:
        OSError: ``out`` cannot be written; a reader that has gone is BrokenPipeError.
    """
    run = _TarExport(store, root, out, progress, on_error)
    run.write(root if top is None else top)
    return run.report


class _TarExport:
    def __init__(
        self,
        store: Store,
        root: TreeEntry,
        out: IO[bytes],
        progress: OnProgress | None,
        on_error: OnProblem | None,
    ) -> None:
        self.report = ExportReport()
        self._store = store
        self._root = root
        self._reader = TreeReader(store)
        self._problems = Problems(self.report.problems, on_error)
        self._on_progress = progress
        self._out = out
        self._first_names: dict[bytes, str] = {}

    def write(self, top: TreeEntry) -> None:
        done = Progress(top.count, top.size)
        with tarfile.open(
            fileobj=self._out,
            mode="w|",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
            bufsize=COPY_BYTES,
        ) as archive:
            self._add(archive, _TOP, top)
            for path, entry in entries_below(self._reader, top, on_lost=self._lost_below):
                self._add(archive, b"./" + path, entry)
                archive.getmembers().clear()  # tarfile would keep every header it has written
                done.files_done += 1
                done.bytes_done += entry.size if entry.is_file else 0
                done.path = path
                if self._on_progress is not None:
                    self._on_progress(done)

    def _add(self, archive: tarfile.TarFile, path: bytes, entry: TreeEntry) -> None:
        if path != _TOP and not is_possible(entry):
            self._lost(path, "no file can have this name or type")
            return
        try:
            inode = self._reader.resolve(self._root, entry)
            if stat.S_IFMT(inode.mode) not in _TYPES:
                self._problems.add(path, "left out: tar has no sockets")
                return
            header = _header(path, inode)
            for name, _ in inode.xattrs:
                if _keyword(name) is None:
                    what = f"its attribute {shown(name)} is left out: tar has no such names"
                    self._problems.add(path, what)
            content = None
            if entry.is_link and self._is_known_link(header, entry.content):
                header.type = tarfile.LNKTYPE
                header.linkname = self._first_names[entry.content]
            elif inode.is_file:
                content = ContentReader(self._store, load_recipe(self._store, inode.content))
                content.check(inode.size)
                header.size = inode.size
        except (CorruptError, MissingRecordError) as exc:
            self._lost(path, f"the store has lost it: {exc}")
            return
        self._write_member(archive, header, content, path)
        if entry.is_directory:
            self.report.directories += 1
        else:
            self.report.files += 1
            self.report.logical_bytes += header.size

    def _write_member(
        self,
        archive: tarfile.TarFile,
        header: tarfile.TarInfo,
        content: "ContentReader | None",
        path: bytes,
    ) -> None:
        try:
            archive.addfile(header, io.BufferedReader(content, COPY_BYTES) if content else None)
        except ValueError as exc:  # a number that has no place in a header; nothing was written
            self._lost(path, f"tar cannot say it: {exc}")
            return
        if content is not None and content.damage is not None:
            self._lost(path, f"the store has lost it: {content.damage}")

    def _is_known_link(self, header: tarfile.TarInfo, link_id: bytes) -> bool:
        is_known = link_id in self._first_names
        self._first_names.setdefault(link_id, header.name)
        return is_known

    def _lost_below(self, path: bytes, exc: StoreError) -> None:
        self._problems.add(path or b".", f"not all of it restored, the store has lost it: {exc}")
        self.report.damaged += 1

    def _lost(self, path: bytes, why: str) -> None:
        self._problems.add(path, f"not restored, {why}")
        self.report.damaged += 1


def _header(path: bytes, entry: TreeEntry) -> tarfile.TarInfo:
    header = tarfile.TarInfo(path.decode("utf-8", "surrogateescape"))
    header.type = _TYPES[stat.S_IFMT(entry.mode)]
    header.mode = stat.S_IMODE(entry.mode)
    header.uid = entry.uid
    header.gid = entry.gid
    header.mtime = entry.mtime_ns // 10**9
    records = {"mtime": _seconds(entry.mtime_ns)}
    if entry.is_symlink:
        header.linkname = entry.content.decode("utf-8", "surrogateescape")
    if entry.rdev:
        header.devmajor, header.devminor = _device(entry.rdev)
    for name, value in entry.xattrs:
        keyword = _keyword(name)
        if keyword is not None:
            records[keyword] = value.decode("utf-8", "surrogateescape")
    header.pax_headers = records
    return header


def _keyword(name: bytes) -> str | None:
    """Return an attribute's keyword as GNU tar writes it; None: keywords are UTF-8, this is none.

    The first ``=`` of a record ends its keyword.
    """
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return "SCHILY.xattr." + text.replace("%", "%25").replace("=", "%3D")


def _seconds(time_ns: int) -> str:
    sign = "-" if time_ns < 0 else ""
    return f"{sign}{abs(time_ns) // 10**9}.{abs(time_ns) % 10**9:09d}"


def _device(rdev: int) -> tuple[int, int]:
    """Split a device number as Linux packs it (makedev(3))."""
    major = (rdev >> 8 & 0xFFF) | (rdev >> 32 & ~0xFFF)
    minor = (rdev & 0xFF) | (rdev >> 12 & ~0xFF)
    return major & 0xFFFFFFFF, minor & 0xFFFFFFFF


class ContentReader(io.RawIOBase):
    """A file's bytes as a stream. Damage in the middle reads as zeros and is kept in ``damage``:
    a tar stream has promised the size already and can only go on.
    """

    def __init__(self, store: Store, recipe: Recipe) -> None:
        super().__init__()
        self._store = store
        self._recipe = recipe
        self._position = 0
        self.damage: Exception | None = None

    def check(self, size: int) -> None:
        """Refuse a recipe that does not make ``size`` bytes.

        Raises:
            CorruptError: it makes more or fewer.
        """
        if self._recipe.size != size:
            raise CorruptError(f"its recipe makes {self._recipe.size} bytes, not {size}")

    def readable(self) -> bool:
        """Say yes."""
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Read the next bytes, at most ``COPY_BYTES``."""
        stop = min(self._position + min(len(buffer), COPY_BYTES), self._recipe.size)
        length = stop - self._position
        try:
            data = self._store.read(self._recipe.cut(self._position, stop))
        except (CorruptError, MissingRecordError) as exc:
            self.damage = exc
            data = bytes(length)
        buffer[:length] = data
        self._position = stop
        return length
