"""Is a checkout what it was made? And how many bytes does it save?

Compares every name with what the tree says and every pack with what the manifest says; with
``full`` also every byte with the ids of its chunks. Changes nothing.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.checkout.changes import Item, walk
from dedupfs.checkout.objects import REFLINK
from dedupfs.checkout.packs import pack_path
from dedupfs.checkout.place import open_top
from dedupfs.checkout.target import Directories, Links, State, split, state_at
from dedupfs.errors import StoreError
from dedupfs.format.manifest import Manifest, Shown
from dedupfs.model import HOLE, RecordKind, TreeEntry
from dedupfs.namespace.contents import load_recipe
from dedupfs.store import Store
from dedupfs.transfer.extents import shared_bytes

DEDUPE = "dedupe"
"""The kind of a directory of which only the files are known that were replaced."""
MISSING = "missing"
CHANGED = "changed"
BROKEN = "broken link"
TARGET = "changed target"
EXTRA = "extra"
DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Finding:
    """One name that is not as it was made."""

    kind: str
    path: bytes
    why: str = ""


@dataclass(frozen=True, slots=True)
class Saving:
    """A file that takes no space of its own, or not all of it."""

    path: bytes
    kind: str
    saved_bytes: int


@dataclass(slots=True)
class VerifyReport:
    """What was found. ``extra`` names are their user's and no fault."""

    number: int = 0
    directory: bytes = b""
    shown: Shown | None = None
    unfinished: bool = False
    files: int = 0
    logical_bytes: int = 0
    saved_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    savings: list[Saving] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all that was made is there as it was made."""
        return not self.unfinished and all(found.kind == EXTRA for found in self.findings)


def verify_checkout(
    store: Store, manifest: Manifest, directory: Path, *, full: bool = False
) -> VerifyReport:
    """Compare a checkout, which is at ``directory``, with what it was made from.

    Raises:
        SourceError: the directory cannot be opened.
    """
    shown = manifest.now or manifest.next
    assert shown is not None
    report = VerifyReport(
        manifest.number, os.fsencode(directory), shown, unfinished=manifest.next is not None
    )
    top_fd = open_top(directory)
    try:
        _Verification(store, manifest, shown, top_fd, report, full=full).run()
    finally:
        os.close(top_fd)
    return report


class _Verification:
    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        shown: Shown,
        top_fd: int,
        report: VerifyReport,
        *,
        full: bool,
    ) -> None:
        self._store = store
        self._shown = shown
        self._is_all = manifest.kind != DEDUPE
        self._report = report
        self._full = full
        self._top_fd = top_fd
        self._links = Links(dict(manifest.links), lambda pack: pack_path(store, pack))
        self._packs = {held.pack: held for held in manifest.packs}
        self._pack_faults: dict[int, Finding | None] = {}
        self._directories = Directories(top_fd)
        self._temporary = f".dedupfs-{manifest.token}.new".encode()

    def run(self) -> None:
        names: dict[bytes, set[bytes]] = {}
        try:
            for path, item in walk(self._store, self._shown.root):
                if item.entry.is_directory:
                    names[path] = set()
                if path:
                    parent, name = split(path)
                    names[parent].add(name)
                    self._compare(path, item)
            if self._is_all:
                for path, known in names.items():
                    self._find_extra(path, known)
        finally:
            self._directories.close()

    def _compare(self, path: bytes, item: Item) -> None:
        parent, name = split(path)
        entry = item.entry
        try:
            fd = self._directories.of(parent)
            state = state_at(fd, name, item, self._links)
        except (FileNotFoundError, NotADirectoryError):
            return  # told of the directory
        except OSError as exc:
            self._add(CHANGED, path, exc.strerror or str(exc))
            return
        if entry.is_file:
            self._report.files += 1
            self._report.logical_bytes += entry.size
        if state is State.MISSING:
            self._add(MISSING, path)
        elif state is State.OTHER:
            self._add_other(fd, name, path, entry)
        elif entry.is_file:
            self._compare_file(fd, name, path, entry, state)

    def _add_other(self, fd: int, name: bytes, path: bytes, entry: TreeEntry) -> None:
        try:
            target = os.readlink(name, dir_fd=fd)
        except OSError:
            self._add(CHANGED, path, "its user has changed or replaced it")
            return
        if self._links.path(entry.content) is not None and not _exists(fd, name):
            self._add(BROKEN, path, f"it leads to {os.fsdecode(target)}, and there is nothing")
        else:
            self._add(CHANGED, path, f"it leads to {os.fsdecode(target)} now")

    def _compare_file(
        self, fd: int, name: bytes, path: bytes, entry: TreeEntry, state: State
    ) -> None:
        if state in (State.LINK, State.HARDLINK):
            fault = self._pack_fault(self._links.packs[entry.content])
            if fault is not None:
                self._add(fault.kind, path, fault.why)
                return
            data_bytes = entry.size - entry.hole_bytes
            kind = "symlink" if state is State.LINK else "hardlink"
            self._save(path, kind, data_bytes)
        elif self._shown.link == REFLINK and entry.size:
            self._save(path, REFLINK, _shared_bytes(fd, name))
        if self._full:
            why = self._difference(fd, name, entry)
            if why:
                is_link = state is not State.PLAIN
                self._add(TARGET if is_link else DAMAGED, path, why)

    def _save(self, path: bytes, kind: str, saved_bytes: int) -> None:
        if saved_bytes:
            self._report.savings.append(Saving(path, kind, saved_bytes))
            self._report.saved_bytes += saved_bytes

    def _pack_fault(self, pack: int) -> Finding | None:
        """Return what is wrong with a pack that links point at."""
        if pack not in self._pack_faults:
            self._pack_faults[pack] = self._look_at_pack(pack)
        return self._pack_faults[pack]

    def _look_at_pack(self, pack: int) -> Finding | None:
        path = pack_path(self._store, pack)
        held = self._packs.get(pack)
        try:
            status = path.stat()
        except OSError as exc:
            return Finding(BROKEN, b"", f"{path}: {exc.strerror}")
        if held is None:
            return Finding(TARGET, b"", f"{path} is not kept for this checkout")
        if status.st_size != held.file_bytes or status.st_mtime_ns != held.mtime_ns:
            return Finding(TARGET, b"", f"{path} was written to: its size or time is not as it was")
        return None

    def _difference(self, fd: int, name: bytes, entry: TreeEntry) -> str:
        """Return what is wrong with the bytes of a file; "" when they are right."""
        try:
            recipe = load_recipe(self._store, entry.content)
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=fd)
        except StoreError as exc:
            return f"the store has lost what it should be: {exc}"
        except OSError as exc:
            return f"it cannot be read: {exc.strerror}"
        try:
            file_offset = 0
            for extent in recipe:
                data = os.pread(file, extent.length, file_offset)
                if extent.chunk_id == HOLE:
                    right = data.count(0) == extent.length
                else:
                    salt = self._store.locate(extent.chunk_id).salt
                    digest = self._store.digest(RecordKind.CHUNK, data, salt)
                    right = digest == extent.chunk_id
                if not right:
                    return f"its bytes from {file_offset} on are others"
                file_offset += extent.length
        except StoreError as exc:
            return f"the store has lost what it should be: {exc}"
        except OSError as exc:
            return f"it cannot be read: {exc.strerror}"
        finally:
            os.close(file)
        return ""

    def _find_extra(self, path: bytes, known: set[bytes]) -> None:
        try:
            found = sorted(map(os.fsencode, os.listdir(self._directories.of(path))))
        except OSError:
            return  # told when it was compared
        for name in found:
            if name not in known and name != self._temporary:
                self._add(EXTRA, path + b"/" + name if path else name)

    def _add(self, kind: str, path: bytes, why: str = "") -> None:
        self._report.findings.append(Finding(kind, path, why))


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd)
    except OSError:
        return False
    return True


def _shared_bytes(directory_fd: int, name: bytes) -> int:
    """Return how many bytes of a file lie in blocks that other files have, too."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return 0
    try:
        return shared_bytes(fd)
    finally:
        os.close(fd)
