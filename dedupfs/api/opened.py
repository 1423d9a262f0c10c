"""A store that this process has open: one for all ``Store`` objects of it, with its locks and pins.

LMDB opens an index once per process, so every ``Store`` on one directory shares this. Threads:
what changes anything holds ``lock`` (as ``changing`` where Ctrl-C must wait), a look at trees
``trees_lock``; file data is read without either. A forked child can use nothing of what its parent
opened: LMDB's environment would lose its place among the readers when the child closes it or merely
collects it. It opens the store anew when it first needs it; a view stays its parent's.
"""

import ctypes
import importlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from dedupfs.errors import NotFoundError, StoreFullError, UsageError
from dedupfs.interrupts import Held, Uninterrupted
from dedupfs.model import RecordId, SnapshotInfo, TreeEntry
from dedupfs.namespace.contents import load_recipe
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of
from dedupfs.recipe import Recipe
from dedupfs.store import Store
from dedupfs.store.owner import Owner

_RECIPES_KEPT = 8
_Key = tuple[int, int]


class OpenView(Protocol):
    """What a store does with its open views."""

    def close(self) -> None:
        """Put everything away."""

    def fold(self) -> None:
        """Turn what changed into trees."""

    def _forget(self) -> object:
        """Have nothing open; return what must not be collected."""


class Hold:
    """Keeps a snapshot's records from gc while this object lives, whoever removes the snapshot.

    In a forked child it is the parent's, and keeps nothing by itself.
    """

    __slots__ = ("__weakref__", "forks", "root")

    def __init__(self, root: TreeEntry, forks: int) -> None:
        self.root = root
        self.forks = forks


class Opened:
    """An open store, counted: the last ``release`` closes it."""

    def __init__(self, path: Path, key: _Key) -> None:
        self.path = path
        self.key = key
        self.users = 0
        self.lock = threading.RLock()
        self.changing = Uninterrupted(self.lock)
        self.trees_lock = threading.RLock()
        self.views: weakref.WeakSet[OpenView] = weakref.WeakSet()
        self.forks = 0
        """How often this process, and those before it, were forked since: what was pinned before
        the last one was pinned by another process."""
        self._core: Store | None = None
        self._is_to_be_opened = True
        self._begin()

    def _begin(self) -> Store:
        core = Store.open(self.path)
        self._catalog = SnapshotCatalog(core)
        self._trees = TreeReader(core)
        # Not the store's own owner: an import lets go of everything that one holds.
        self._holder = Owner(core.layout, core.disk)
        self._due: deque[list[RecordId]] = deque()
        self._recent: deque[tuple[TreeEntry, Hold]] = deque(maxlen=1)

        @lru_cache(_RECIPES_KEPT)
        def recipe(content: bytes) -> Recipe:
            return load_recipe(core, content)

        self._recipe = recipe
        self._core = core
        self._is_to_be_opened = False
        return core

    @property
    def core(self) -> Store:
        """The store itself; opened now in a process that was forked from one that had it open.

        Raises:
            UsageError: it is closed. StoreError: it cannot be opened any more.
        """
        core = self._core
        if core is not None:
            return core
        with self.lock:
            if self._is_to_be_opened:
                return self._begin()
        raise UsageError(f"the store {self.path} is closed")

    @property
    def catalog(self) -> SnapshotCatalog:
        """The catalogue. The caller has ``lock``."""
        _ = self.core
        return self._catalog

    def infos(self) -> list[SnapshotInfo]:
        """Return all snapshots, sorted by name."""
        with self.lock:
            return list(self.catalog.list())

    def recipe(self, content: bytes) -> Recipe:
        """Return the recipe of a file's content; those of the last files are kept."""
        _ = self.core
        return self._recipe(content)

    @contextmanager
    def trees(self) -> Iterator[TreeReader]:
        """Have the decoded trees for a look; they are not for several threads."""
        _ = self.core
        with self.trees_lock:
            yield self._trees

    # --- pins ------------------------------------------------------------------------------------

    def hold(self, root: TreeEntry) -> Hold | None:
        """Keep what ``root`` leads to from gc while the result lives; None on a full disk.

        The last one is kept for who asks again.

        Raises:
            MissingRecordError: it is gone already.
        """
        with self.changing:
            core = self.core
            for kept, hold in self._recent:
                if kept == root:
                    return hold
            ids = [one for one in (tree_id_of(root), links_id_of(root)) if one is not None]
            try:
                self._holder.claim()
                with core.transaction() as txn:
                    for record_id in ids:
                        txn.pin(self._holder.name, record_id)
            except StoreFullError:  # what can be read must be readable all the same
                return None
            hold = Hold(root, self.forks)
            # A finalizer may run anywhere, so it only notes what is due.
            weakref.finalize(hold, self._due.append, ids).atexit = False
            self._recent.append((root, hold))
            self._unpin_due()
            return hold

    def let_go(self) -> None:
        """Give up what is held for nobody any more."""
        with self.changing:
            self._recent.clear()
            self._unpin_due()

    def _unpin_due(self) -> None:
        """The caller has ``changing``: what Ctrl-C raised behind a commit would be due again."""
        if not self._due:
            return
        ids: list[RecordId] = []
        while self._due:
            ids += self._due.popleft()
        try:
            with self.core.transaction() as txn:
                for record_id in ids:
                    txn.unpin(self._holder.name, record_id)
        except StoreFullError:  # later, then: neither reading nor gc shall end by it
            self._due.append(ids)
        except BaseException:
            self._due.append(ids)
            raise

    # --- the end ---------------------------------------------------------------------------------

    def release(self) -> None:
        """One user less; the last one closes the store."""
        with self.changing, _registry_lock:  # never the other way round
            self.users -= 1
            if self.users > 0:
                return
            self._is_to_be_opened = False
            if _open.get(self.key) is self:
                del _open[self.key]
            core = self._core
            if core is None:
                return
            try:
                for view in list(self.views):
                    view.close()
                self._give_up_holds(core)
            finally:
                self._core = None
                core.close()

    def _give_up_holds(self, core: Store) -> None:
        if not self._holder.is_claimed:
            return
        try:
            with core.transaction() as txn:
                txn.release_pins(self._holder.name)
        finally:
            self._holder.release()  # gc sees by this, too, that nobody needs them

    def forget(self) -> None:
        """In a forked child: nothing of the parent's is used, changed or given up."""
        self.lock = threading.RLock()
        self.changing = Uninterrupted(self.lock)
        self.trees_lock = threading.RLock()
        self.forks += 1
        if self._core is not None:
            _keep_for_ever((self._core, self._holder, self._recipe, self._recent, self._due))
            self._core.abandon()
            self._holder.abandon()
            self._core = None
            self._is_to_be_opened = True
        for view in list(self.views):
            _keep_for_ever(view._forget())
        self.views.clear()


def _keep_for_ever(thing: object) -> None:
    """Let nothing collect ``thing``, not even the interpreter's end."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


_registry_lock = threading.RLock()
_open: dict[_Key, Opened] = {}


def open_shared(path: Path) -> Opened:
    """Open the store at ``path``, or share what this process has open of it."""
    path = Path(os.path.abspath(path))
    with Held(), _registry_lock:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise NotFoundError(f"there is no store at {path}") from None
        except OSError as exc:
            raise UsageError(f"cannot open {path}: {exc.strerror}") from exc
        key = status.st_dev, status.st_ino
        opened = _open.get(key)
        if opened is None:
            opened = _open[key] = Opened(path, key)
        opened.users += 1
        return opened


_IMPORTED_LATE = (
    "dedupfs.api.snapshot",
    "dedupfs.api.space",
    "dedupfs.maintenance.check",
    "dedupfs.maintenance.policy_text",
    "dedupfs.maintenance.prune",
    "dedupfs.maintenance.retention",
    "dedupfs.maintenance.usage",
    "dedupfs.transfer.export",
    "dedupfs.transfer.ingest",
    "dedupfs.transfer.patterns",
    "dedupfs.transfer.selection",
    "dedupfs.transfer.tar",
)
"""What methods import when they are first called."""


def _before_fork() -> None:
    """Import what is imported late, which waits for other threads that are just doing so.

    A child would wait for ever for a module that a thread of its parent was importing.
    """
    if _open:
        for name in _IMPORTED_LATE:
            importlib.import_module(name)


def _after_fork() -> None:
    global _registry_lock  # noqa: PLW0603  another thread of the parent may have had it
    _registry_lock = threading.RLock()
    for opened in _open.values():
        opened.forget()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
