"""Changing names and attributes in a view; the bytes of files are not here."""

import os
import stat
import time

from dedupfs.api.failures import public
from dedupfs.api.reading import AnyPath, names_of, shown_path
from dedupfs.api.viewbase import ViewBase
from dedupfs.api.viewpaths import Place, children
from dedupfs.errors import (
    ExistsError,
    InvalidError,
    NotADirectoryNameError,
    NotEmptyError,
    NotFoundError,
)
from dedupfs.namespace.view import AttrChange


class ViewChanges(ViewBase):
    """The methods of a view that change names and attributes."""

    # --- names -----------------------------------------------------------------------------------

    @public
    def mkdir(self, path: AnyPath, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory; ``parents``: and those above it that are missing."""
        with self._opened.changing:
            names = names_of(path)
            if parents:
                for depth in range(1, len(names)):
                    self._make_directory(b"/".join(names[:depth]), exist_ok=True)
            self._make_directory(b"/".join(names), exist_ok=exist_ok)
            self._tidy()

    def _make_directory(self, path: bytes, *, exist_ok: bool) -> None:
        place = self._find(path, follow=exist_ok)
        if place.attr is None:
            self._core.mkdir(place.parent, place.name, 0o777, self._caller)
        elif not exist_ok or not stat.S_ISDIR(place.attr.mode):
            raise ExistsError(f"{shown_path(path)!r} exists")

    @public
    def symlink(self, target: AnyPath, path: AnyPath) -> None:
        """Make ``path`` a symbolic link to ``target``."""
        with self._opened.changing:
            place = self._free(path)
            self._core.symlink(place.parent, place.name, os.fsencode(target), self._caller)
            self._tidy()

    @public
    def link(self, source: AnyPath, path: AnyPath) -> None:
        """Give the file at ``source`` the second name ``path``."""
        with self._opened.changing:
            attr = self._at(source, follow=False)
            place = self._free(path)
            self._core.link(attr.inode, place.parent, place.name)
            self._tidy()

    def _free(self, path: AnyPath) -> Place:
        place = self._find(path, follow=False)
        if place.attr is not None:
            raise ExistsError(f"{shown_path(path)!r} exists")
        return place

    @public
    def remove(self, path: AnyPath) -> None:
        """Remove a name that is no directory's."""
        with self._opened.changing:
            place = self._find(path, follow=False)
            if place.attr is None:
                raise NotFoundError(f"no {shown_path(path)!r}")
            self._core.unlink(place.parent, place.name)
            self._core.forget([(place.attr.inode, 1)])
            self._tidy()

    @public
    def rmdir(self, path: AnyPath) -> None:
        """Remove an empty directory."""
        with self._opened.changing:
            self._remove_directory(self._find(path, follow=False), path)
            self._tidy()

    def _remove_directory(self, place: Place, path: AnyPath) -> None:
        if place.attr is None:
            raise NotFoundError(f"no {shown_path(path)!r}")
        if not place.name:
            raise InvalidError("the root of a view cannot be removed")
        try:
            self._core.rmdir(place.parent, place.name)
        except NotEmptyError:
            raise NotEmptyError(f"{shown_path(path)!r} is not empty") from None
        self._core.forget([(place.attr.inode, 1)])

    @public
    def rmtree(self, path: AnyPath) -> None:
        """Remove a directory and everything below it. Another thread's new names may end it."""
        pending: list[tuple[bytes, bool]] = [(b"/".join(names_of(path)), False)]
        while pending:
            where, is_empty = pending.pop()
            with self._opened.changing:
                place = self._find(where, follow=False)
                if is_empty:
                    self._remove_directory(place, where)
                    self._tidy()
                    continue
                if place.attr is None:
                    raise NotFoundError(f"no {shown_path(where)!r}")
                if not place.name:
                    raise InvalidError("the root of a view cannot be removed")
                if not stat.S_ISDIR(place.attr.mode):
                    raise NotADirectoryNameError(f"{shown_path(where)!r} is no directory")
                pending.append((where, True))
                for name, attr in children(self._core, place.attr.inode):
                    if stat.S_ISDIR(attr.mode):
                        pending.append((where + b"/" + name, False))
                    else:
                        self._core.unlink(place.attr.inode, name)
                        self._core.forget([(attr.inode, 1)])
                self._tidy()

    @public
    def rename(self, old: AnyPath, new: AnyPath) -> None:
        """Rename; a file, or an empty directory, at ``new`` is replaced, as by ``os.replace``."""
        with self._opened.changing:
            source, target = self._find(old, follow=False), self._find(new, follow=False)
            if source.attr is None:
                raise NotFoundError(f"no {shown_path(old)!r}")
            if not source.name or not target.name:
                raise InvalidError("the root of a view cannot be renamed")
            above = names_of(new)
            if target.attr is not None and names_of(old)[: len(above) + 1][:-1] == above:
                raise NotEmptyError(f"{shown_path(old)!r} is in {shown_path(new)!r}")
            self._core.rename(source.parent, source.name, target.parent, target.name, 0)
            if target.attr is not None and target.attr.inode != source.attr.inode:
                self._core.forget([(target.attr.inode, 1)])
            self._tidy()

    @public
    def mkfifo(self, path: AnyPath, mode: int = 0o666) -> None:
        """Make a fifo, which is kept for mounts and exports: nothing opens it here."""
        self.mknod(path, stat.S_IFIFO | stat.S_IMODE(mode))

    @public
    def mknod(self, path: AnyPath, mode: int = 0o600, device: int = 0) -> None:
        """Make what ``mode`` says: a file, a fifo, a socket or a device node (``os.makedev``)."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            raise InvalidError("mknod makes neither directories nor links")
        with self._opened.changing:
            place = self._free(path)
            full = kind | stat.S_IMODE(mode)
            self._core.mknod(place.parent, place.name, full, device, self._caller)
            self._tidy()

    @public
    def clone(self, source: str, path: AnyPath) -> None:
        """Make ``path`` a directory with the content of ``SNAPSHOT[:PATH]``, at no cost."""
        with self._opened.changing:
            place = self._free(path)
            made = self._core.mkdir(place.parent, place.name, 0o777, self._caller)
            try:
                self._core.clone(made.inode, os.fsencode(source), privileged=True)
            except BaseException:
                self._core.rmdir(place.parent, place.name)
                self._core.forget([(made.inode, 1)])
                raise
            self._tidy()

    @public
    def copy(self, source: AnyPath, path: AnyPath, *, follow_symlinks: bool = True) -> None:
        """Make ``path`` a copy of the file or directory ``source``; no byte is read.

        It has all attributes of its source, and nothing done to one is seen in the other. Links
        below stay links, and names of one file (hard links) become files of their own, as by
        ``shutil.copytree``. Files that are open for writing are taken as far as they were flushed.

        Raises:
            ExistsError (FileExistsError): there is something at ``path``.
        """
        with self._opened.changing:
            attr = self._at(source, follow=follow_symlinks)
            place = self._free(path)
            self._core.copy(attr.inode, place.parent, place.name)
            self._tidy()

    # --- attributes ------------------------------------------------------------------------------

    @public
    def chmod(self, path: AnyPath, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set the permission bits."""
        change = AttrChange(mode=mode & 0o7777, privileged=True)
        self._set(path, change, follow_symlinks)

    @public
    def chown(self, path: AnyPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """Set the owner and the group; -1: it stays."""
        change = AttrChange(
            uid=None if uid == -1 else uid, gid=None if gid == -1 else gid, privileged=True
        )
        if (uid, gid) != (-1, -1):
            self._set(path, change, follow_symlinks)

    @public
    def utime(
        self,
        path: AnyPath,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """Set the times of last access and last change, as ``os.utime``; now unless told."""
        if times is not None and ns is not None:
            raise ValueError("times are told in seconds or in nanoseconds, not both")
        if ns is None:
            now_ns = time.time_ns()
            ns = (now_ns, now_ns) if times is None else (_ns_of(times[0]), _ns_of(times[1]))
        self._set(path, AttrChange(atime_ns=ns[0], mtime_ns=ns[1]), follow_symlinks)

    @public
    def truncate(self, path: AnyPath, size: int) -> None:
        """Make a file ``size`` bytes long; what is added reads as zeros and takes no room."""
        if size < 0:
            raise InvalidError("a size is not negative")
        self._set(path, AttrChange(size=size), True)

    def _set(self, path: AnyPath, change: AttrChange, follow: bool) -> None:
        with self._opened.changing:
            self._core.setattr(self._at(path, follow=follow).inode, change)
            self._tidy()

    @public
    def setxattr(
        self,
        path: AnyPath,
        name: AnyPath,
        value: bytes,
        flags: int = 0,
        *,
        follow_symlinks: bool = True,
    ) -> None:
        """Set an extended attribute; ``flags`` as for ``os.setxattr``. An ACL is one, too."""
        with self._opened.changing:
            attr = self._at(path, follow=follow_symlinks)
            self._core.setxattr(attr.inode, os.fsencode(name), bytes(value), flags)
            self._tidy()

    @public
    def removexattr(self, path: AnyPath, name: AnyPath, *, follow_symlinks: bool = True) -> None:
        """Remove an extended attribute."""
        with self._opened.changing:
            attr = self._at(path, follow=follow_symlinks)
            self._core.removexattr(attr.inode, os.fsencode(name))
            self._tidy()


def _ns_of(seconds: float) -> int:
    return int(seconds * 1e9)
