"""A writable view without a mount: what a mount does, by this process. Source: docs/api.md.

Modes and owners are kept but not enforced: a store's owner may read and change everything. Threads
go one at a time; bytes are read and made durable without holding the others up.
"""

import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, BinaryIO, Literal, Self, TextIO, cast, overload

from dedupfs.api.failures import public, public_generator
from dedupfs.api.reading import (
    AnyPath,
    Entry,
    Stat,
    check_mode,
    names_of,
    shown_path,
    wrapped,
)
from dedupfs.api.viewfile import ViewFile
from dedupfs.api.viewpaths import Place, children, find_place, stat_of_attr, umask_now
from dedupfs.errors import (
    ExistsError,
    InvalidError,
    IsADirectoryNameError,
    NotADirectoryNameError,
    NotEmptyError,
    NotFoundError,
    StoreError,
    UsageError,
)
from dedupfs.model import Attr
from dedupfs.namespace.view import AttrChange, Caller
from dedupfs.namespace.view import View as CoreView
from dedupfs.store.pace import run_steps

if TYPE_CHECKING:
    from dedupfs.api.opened import Opened
    from dedupfs.api.snapshot import Snapshot
    from dedupfs.api.store import Store

log = logging.getLogger(__name__)

_FOLD_AGAIN_S = 5.0


class View:
    """An open view; ``close`` it, or use ``with``. Nobody else can have it open meanwhile.

    What a method has done survives the end of this process; ``sync`` makes it survive a power cut.
    A view over all snapshots shows each as a directory; one over a snapshot shows what is in it.
    """

    def __init__(
        self, store: "Store", opened: "Opened", name: str | None, snapshot: str | None
    ) -> None:
        self._store = store
        self._opened = opened
        self._fold_after_s = 0.0
        self._why_closed = ""
        self._caller = Caller(os.geteuid(), os.getegid(), umask_now())
        self._view: CoreView | None = None
        with opened.lock:
            if name is None:
                self._view = CoreView.open_ephemeral(opened.core, snapshot=snapshot)
            else:
                self._view = CoreView.bring_back(opened.core, name, snapshot=snapshot)
            opened.views.add(self)
        self.name = self._view.name

    def __repr__(self) -> str:
        return f"<View {self.name!r} of {str(self._store.path)!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @public
    def close(self) -> None:
        """Put everything away and let go of the view; again does nothing."""
        with self._opened.lock:
            view, self._view = self._view, None
            if view is not None:
                self._opened.views.discard(self)
                view.close()

    def forget(self) -> object:
        """In a forked child: the view is the parent's; return what must not be collected."""
        view, self._view = self._view, None
        if view is not None:
            view.abandon()
        self._why_closed = " in a forked process: it is that of its parent"
        return view

    @property
    def core(self) -> CoreView:
        """The view itself; the caller has the lock.

        Raises:
            UsageError: it is closed.
        """
        if self._view is None:
            raise UsageError(f"view {self.name!r} is closed{self._why_closed}")
        return self._view

    @property
    def is_open(self) -> bool:
        """Whether this process has it open."""
        return self._view is not None

    @property
    def opened(self) -> "Opened":
        """The store that it is in."""
        return self._opened

    # --- what is in it ---------------------------------------------------------------------------

    @public
    def stat(self, path: AnyPath = "", *, follow_symlinks: bool = True) -> Stat:
        """Return what is at ``path``."""
        with self._opened.lock:
            return stat_of_attr(self._at(path, follow=follow_symlinks))

    @public
    def exists(self, path: AnyPath = "", *, follow_symlinks: bool = True) -> bool:
        """Whether ``path`` leads to something."""
        try:
            with self._opened.lock:
                self._at(path, follow=follow_symlinks)
        except (NotFoundError, NotADirectoryNameError):
            return False
        return True

    @public
    def readlink(self, path: AnyPath) -> str:
        """Return the target of a symbolic link."""
        with self._opened.lock:
            return os.fsdecode(self.core.readlink(self._at(path, follow=False).inode))

    @public
    def ls(self, path: AnyPath = "") -> list[str]:
        """Return the names in a directory, sorted by their bytes."""
        return [entry.name for entry in self._listed(path)]

    @public
    def scandir(self, path: AnyPath = "") -> list[Entry]:
        """Return what is in a directory, with its ``Stat``; links are not followed."""
        return self._listed(path)

    @public_generator
    def walk(self, path: AnyPath = "") -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (directory, its directories, its other names) from the top, as ``os.walk``."""
        pending = [shown_path(path)]
        while pending:
            top = pending.pop()
            listed = self._listed(top)
            directories = [entry.name for entry in listed if entry.stat.is_dir]
            yield top, directories, [entry.name for entry in listed if not entry.stat.is_dir]
            pending += [f"{top}/{name}" if top else name for name in reversed(directories)]

    def _listed(self, path: AnyPath) -> list[Entry]:
        where = shown_path(path)
        with self._opened.lock:
            attr = self._at(path, follow=True)
            if not stat.S_ISDIR(attr.mode):
                raise NotADirectoryNameError(f"{where!r} is no directory")
            found = sorted((name, attr) for name, attr in children(self.core, attr.inode))
        return [
            Entry(os.fsdecode(name), os.path.join(where, os.fsdecode(name)), stat_of_attr(attr))
            for name, attr in found
        ]

    def _at(self, path: AnyPath, *, follow: bool) -> Attr:
        found = self._find(path, follow=follow).attr
        if found is None:
            raise NotFoundError(f"no {shown_path(path)!r}")
        return found

    def _find(self, path: AnyPath, *, follow: bool) -> Place:
        return find_place(self.core, path, follow=follow)

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
        with self._opened.lock:
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
            handle, attr = self.core.create(place.parent, place.name, 0o666, self._caller)
            return handle, attr.inode
        if "x" in mode:
            raise ExistsError(f"{shown_path(path)!r} exists")
        if stat.S_ISDIR(place.attr.mode):
            raise IsADirectoryNameError(f"{shown_path(path)!r} is a directory")
        flags = os.O_RDONLY if mode.strip("bt") == "r" else os.O_RDWR
        if "w" in mode:
            flags |= os.O_TRUNC
        is_root = self._caller.uid == 0
        return self.core.open(place.attr.inode, flags, privileged=is_root), place.attr.inode

    @public
    def read_bytes(self, path: AnyPath) -> bytes:
        """Return all of a file."""
        with self.open(path, "rb") as file:
            return file.read()

    @public
    def read_text(self, path: AnyPath, encoding: str = "utf-8") -> str:
        """Return all of a text file."""
        return self.read_bytes(path).decode(encoding)

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

    # --- names -----------------------------------------------------------------------------------

    @public
    def mkdir(self, path: AnyPath, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory; ``parents``: and those above it that are missing."""
        with self._opened.lock:
            names = names_of(path)
            if parents:
                for depth in range(1, len(names)):
                    self._make_directory(b"/".join(names[:depth]), exist_ok=True)
            self._make_directory(b"/".join(names), exist_ok=exist_ok)
            self.tidy()

    def _make_directory(self, path: bytes, *, exist_ok: bool) -> None:
        place = self._find(path, follow=exist_ok)
        if place.attr is None:
            self.core.mkdir(place.parent, place.name, 0o777, self._caller)
        elif not exist_ok or not stat.S_ISDIR(place.attr.mode):
            raise ExistsError(f"{shown_path(path)!r} exists")

    @public
    def symlink(self, target: AnyPath, path: AnyPath) -> None:
        """Make ``path`` a symbolic link to ``target``."""
        with self._opened.lock:
            place = self._free(path)
            self.core.symlink(place.parent, place.name, os.fsencode(target), self._caller)
            self.tidy()

    @public
    def link(self, source: AnyPath, path: AnyPath) -> None:
        """Give the file at ``source`` the second name ``path``."""
        with self._opened.lock:
            attr = self._at(source, follow=False)
            place = self._free(path)
            self.core.link(attr.inode, place.parent, place.name)
            self.tidy()

    def _free(self, path: AnyPath) -> Place:
        place = self._find(path, follow=False)
        if place.attr is not None:
            raise ExistsError(f"{shown_path(path)!r} exists")
        return place

    @public
    def remove(self, path: AnyPath) -> None:
        """Remove a name that is no directory's."""
        with self._opened.lock:
            place = self._find(path, follow=False)
            if place.attr is None:
                raise NotFoundError(f"no {shown_path(path)!r}")
            self.core.unlink(place.parent, place.name)
            self.core.forget([(place.attr.inode, 1)])
            self.tidy()

    @public
    def rmdir(self, path: AnyPath) -> None:
        """Remove an empty directory."""
        with self._opened.lock:
            self._remove_directory(self._find(path, follow=False), path)
            self.tidy()

    def _remove_directory(self, place: Place, path: AnyPath) -> None:
        if place.attr is None:
            raise NotFoundError(f"no {shown_path(path)!r}")
        if not place.name:
            raise InvalidError("the root of a view cannot be removed")
        try:
            self.core.rmdir(place.parent, place.name)
        except NotEmptyError:
            raise NotEmptyError(f"{shown_path(path)!r} is not empty") from None
        self.core.forget([(place.attr.inode, 1)])

    @public
    def rmtree(self, path: AnyPath) -> None:
        """Remove a directory and everything below it. Another thread's new names may end it."""
        pending: list[tuple[bytes, bool]] = [(b"/".join(names_of(path)), False)]
        while pending:
            where, is_empty = pending.pop()
            with self._opened.lock:
                place = self._find(where, follow=False)
                if is_empty:
                    self._remove_directory(place, where)
                    self.tidy()
                    continue
                if place.attr is None:
                    raise NotFoundError(f"no {shown_path(where)!r}")
                if not place.name:
                    raise InvalidError("the root of a view cannot be removed")
                if not stat.S_ISDIR(place.attr.mode):
                    raise NotADirectoryNameError(f"{shown_path(where)!r} is no directory")
                pending.append((where, True))
                for name, attr in children(self.core, place.attr.inode):
                    if stat.S_ISDIR(attr.mode):
                        pending.append((where + b"/" + name, False))
                    else:
                        self.core.unlink(place.attr.inode, name)
                        self.core.forget([(attr.inode, 1)])
                self.tidy()

    @public
    def rename(self, old: AnyPath, new: AnyPath) -> None:
        """Rename; a file, or an empty directory, at ``new`` is replaced, as by ``os.replace``."""
        with self._opened.lock:
            source, target = self._find(old, follow=False), self._find(new, follow=False)
            if source.attr is None:
                raise NotFoundError(f"no {shown_path(old)!r}")
            if not source.name or not target.name:
                raise InvalidError("the root of a view cannot be renamed")
            above = names_of(new)
            if target.attr is not None and names_of(old)[: len(above) + 1][:-1] == above:
                raise NotEmptyError(f"{shown_path(old)!r} is in {shown_path(new)!r}")
            self.core.rename(source.parent, source.name, target.parent, target.name, 0)
            if target.attr is not None and target.attr.inode != source.attr.inode:
                self.core.forget([(target.attr.inode, 1)])
            self.tidy()

    @public
    def chmod(self, path: AnyPath, mode: int) -> None:
        """Set the permission bits of what ``path`` leads to."""
        self._set(path, AttrChange(mode=mode & 0o7777, privileged=True))

    @public
    def utime(self, path: AnyPath, mtime_ns: int) -> None:
        """Set the time of the last change of what ``path`` leads to."""
        self._set(path, AttrChange(mtime_ns=mtime_ns))

    @public
    def truncate(self, path: AnyPath, size: int) -> None:
        """Make a file ``size`` bytes long; what is added reads as zeros and takes no room."""
        self._set(path, AttrChange(size=size))

    def _set(self, path: AnyPath, change: AttrChange) -> None:
        with self._opened.lock:
            self.core.setattr(self._at(path, follow=True).inode, change)
            self.tidy()

    @public
    def clone(self, source: str, path: AnyPath) -> None:
        """Make ``path`` a directory with the content of ``SNAPSHOT[:PATH]``, at no cost."""
        with self._opened.lock:
            place = self._free(path)
            made = self.core.mkdir(place.parent, place.name, 0o777, self._caller)
            try:
                self.core.clone(made.inode, os.fsencode(source), privileged=True)
            except BaseException:
                self.core.rmdir(place.parent, place.name)
                self.core.forget([(made.inode, 1)])
                raise
            self.tidy()

    # --- keeping ---------------------------------------------------------------------------------

    @public
    def sync(self) -> None:
        """Wait until all that was done is safe from a power cut."""
        with self._opened.lock:
            self.core.fold()
            plan = self.core.plan_fsync(None)
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
        with self._opened.lock:
            info = self.core.commit(name, path=b"/".join(names_of(path)), tags=texts)
        return Snapshot(self._store, info)

    @public
    def fold(self) -> None:
        """Turn what changed into trees now, so that gc can free what was deleted."""
        with self._opened.lock:
            self.core.fold()

    def tidy(self) -> None:
        """Do what is due after a change. What was done is safe whether or not that works."""
        if not self.core.wants_fold() or time.monotonic() < self._fold_after_s:
            return
        try:
            self.core.fold()
            run_steps(self.core.relief.giving_back())
        except StoreError as exc:
            self._fold_after_s = time.monotonic() + _FOLD_AGAIN_S
            log.error("fold failed, will be tried again view=%s: %s", self.name, exc)
