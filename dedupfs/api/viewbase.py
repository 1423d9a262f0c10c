"""What every method of a view stands on: the open view, its lock, and what a path leads to.

Knows no file that is open and changes nothing by itself. Source: docs/api.md.
"""

import logging
import os
import stat
import sys
import time
import warnings
from typing import TYPE_CHECKING, Self

from dedupfs.api.failures import public
from dedupfs.api.reading import AnyPath, Entry, Stat, shown_path
from dedupfs.api.tree import Tree
from dedupfs.api.viewpaths import Place, children, find_place, stat_of_attr, umask_now
from dedupfs.errors import NotADirectoryNameError, NotFoundError, StoreError, UsageError
from dedupfs.model import Attr
from dedupfs.namespace.view import Caller
from dedupfs.namespace.view import View as CoreView
from dedupfs.store.pace import run_steps

if TYPE_CHECKING:
    from dedupfs.api.opened import Opened
    from dedupfs.api.store import Store

log = logging.getLogger(__name__)

_FOLD_AGAIN_S = 5.0


class ViewBase(Tree):
    """A view that this process has open, to look at."""

    _warns = True
    """Whether somebody can be told who has forgotten to close it."""

    def __init__(
        self, store: "Store", opened: "Opened", name: str | None, snapshot: str | None
    ) -> None:
        self._store = store
        self._opened = opened
        self._fold_after_s = 0.0
        self._why_closed = ""
        self._caller = Caller(os.geteuid(), os.getegid(), umask_now())
        self._view: CoreView | None = None
        with opened.changing:
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

    def __del__(self) -> None:
        if getattr(self, "_view", None) is not None and self._warns and not sys.is_finalizing():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    @public
    def close(self) -> None:
        """Put everything away and let go of the view; again does nothing."""
        with self._opened.changing:
            view, self._view = self._view, None
            if view is not None:
                self._opened.views.discard(self)
                view.close()

    def _forget(self) -> object:
        """In a forked child: the view is the parent's; return what must not be collected."""
        view, self._view = self._view, None
        if view is not None:
            view.abandon()
        self._why_closed = " in a forked process: it is that of its parent"
        return view

    @property
    def _core(self) -> CoreView:
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

    # --- what is in it ---------------------------------------------------------------------------

    @public
    def stat(self, path: AnyPath = "", *, follow_symlinks: bool = True) -> Stat:
        """Return what is at ``path``."""
        with self._opened.changing:
            return stat_of_attr(self._at(path, follow=follow_symlinks))

    @public
    def readlink(self, path: AnyPath) -> str:
        """Return the target of a symbolic link."""
        with self._opened.changing:
            return os.fsdecode(self._core.readlink(self._at(path, follow=False).inode))

    @public
    def getxattr(self, path: AnyPath, name: AnyPath, *, follow_symlinks: bool = True) -> bytes:
        """Return an extended attribute; ``user.dedupfs.*`` tell of storage, as in a mount.

        Raises:
            NoAttributeError (OSError with ENODATA): it is not set.
        """
        with self._opened.changing:
            attr = self._at(path, follow=follow_symlinks)
            return self._core.getxattr(attr.inode, os.fsencode(name))

    @public
    def listxattr(self, path: AnyPath = "", *, follow_symlinks: bool = True) -> list[str]:
        """Return the names of the extended attributes that were set."""
        with self._opened.changing:
            attr = self._at(path, follow=follow_symlinks)
            return [os.fsdecode(name) for name in self._core.listxattr(attr.inode)]

    def _listed(self, path: AnyPath) -> list[Entry]:
        where = shown_path(path)
        with self._opened.changing:
            attr = self._at(path, follow=True)
            if not stat.S_ISDIR(attr.mode):
                raise NotADirectoryNameError(f"{where!r} is no directory")
            found = sorted((name, attr) for name, attr in children(self._core, attr.inode))
        return [
            Entry(os.fsdecode(name), os.path.join(where, os.fsdecode(name)), stat_of_attr(attr))
            for name, attr in found
        ]

    def _at(self, path: AnyPath, *, follow: bool) -> Attr:
        found = self._find(path, follow=follow).attr
        if found is None:
            raise NotFoundError(f"no {shown_path(path)!r}")
        return found

    def _is_same(self, path: AnyPath, other: AnyPath) -> bool:
        """Whether both lead to one file, links followed; ``other`` may be missing."""
        with self._opened.changing:
            found = self._find(other, follow=True).attr
            return found is not None and found.inode == self._at(path, follow=True).inode

    def _find(self, path: AnyPath, *, follow: bool) -> Place:
        return find_place(self._core, path, follow=follow)

    @public
    def fold(self) -> None:
        """Turn what changed into trees now, so that gc can free what was deleted."""
        with self._opened.changing:
            self._core.fold()

    def _tidy(self) -> None:
        """Do what is due after a change. What was done is safe whether or not that works."""
        if not self._core.wants_fold() or time.monotonic() < self._fold_after_s:
            return
        try:
            self._core.fold()
            run_steps(self._core.relief.giving_back())
        except StoreError as exc:
            self._fold_after_s = time.monotonic() + _FOLD_AGAIN_S
            log.error("fold failed, will be tried again view=%s: %s", self.name, exc)
