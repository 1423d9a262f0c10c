"""A store as an object: its snapshots by name, and the way to views. Source: docs/api.md."""

import datetime
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dedupfs.api.failures import public
from dedupfs.api.opened import Opened, open_shared
from dedupfs.api.results import Collected, Pruned, Stats, Taken, ViewInfo
from dedupfs.api.snapshot import Snapshot, told_problems
from dedupfs.api.view import View
from dedupfs.errors import SourceError, StoreError, UsageError
from dedupfs.namespace import live
from dedupfs.namespace.views import list_views, remove_view, view_owner
from dedupfs.store import Store as CoreStore

if TYPE_CHECKING:
    from dedupfs.maintenance.retention import Policy
    from dedupfs.transfer.report import OnProblem

log = logging.getLogger(__name__)

StorePath = str | os.PathLike[str]
_NO_RULE = ("no rule keeps it",)


class Store:
    """An open store: a mapping of names to snapshots, and more. ``close`` it, or use ``with``.

    Threads: every method of everything here may be called by any thread; what changes the store,
    or a view of it, goes one at a time. Fork: the child opens the store anew when it first uses any
    of this; views stay the parent's. A ``Store`` and a ``Snapshot`` can be pickled. Any number of
    ``Store`` objects, processes and mounts may have one store open.
    """

    _warns = True
    """Whether somebody can be told who has forgotten to close it."""

    def __init__(self, path: StorePath) -> None:
        self._shared: Opened | None = open_shared(Path(path))
        self.path = self._shared.path

    @classmethod
    @public
    def open(cls, path: StorePath) -> Self:
        """Open the store at ``path``. Costs the same however large it is.

        Raises:
            NotFoundError (FileNotFoundError): there is nothing. UsageError (ValueError): no store,
                or another user's. StoreError (OSError): it is damaged.
        """
        return cls(path)

    @classmethod
    @public
    def create(cls, path: StorePath, *, chunk_size: int = 65536, compression: str = "auto") -> Self:
        """Make an empty store at ``path``, which is free or an empty directory, and open it.

        ``chunk_size`` (on average; a power of two) and ``compression`` (auto, none, zstd) stay.
        """
        made = CoreStore.create(Path(path), chunk_bytes_average=chunk_size, compression=compression)
        made.close()
        return cls(path)

    @public
    def close(self) -> None:
        """Let go of the store; when this was the last ``Store`` of it, views are closed, too."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_shared", None) is not None and self._warns and not sys.is_finalizing():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __reduce__(self) -> tuple[object, ...]:
        return Store.open, (str(self.path),)

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}>"

    @property
    def _opened(self) -> Opened:
        if self._shared is None:
            raise UsageError(f"the store {self.path} is closed")
        return self._shared

    # --- snapshots -------------------------------------------------------------------------------

    @public
    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots, sorted by name."""
        return [Snapshot(self, info) for info in self._opened.infos()]

    @public
    def __getitem__(self, name: str) -> Snapshot:
        """Return the snapshot called ``name``.

        Raises:
            NotFoundError (FileNotFoundError): there is none.
        """
        with self._opened.lock:
            return Snapshot(self, self._opened.catalog.get(name))

    @public
    def __contains__(self, name: object) -> bool:
        with self._opened.lock:
            return isinstance(name, str) and self._opened.catalog.find(name) is not None

    @public
    def __iter__(self) -> Iterator[str]:
        return iter([info.name for info in self._opened.infos()])

    @public
    def __len__(self) -> int:
        return len(self._opened.infos())

    def __bool__(self) -> bool:
        return True

    @public
    def import_tree(
        self,
        directory: StorePath,
        name: str,
        *,
        tags: Mapping[str, object] | None = None,
        exclude: Iterable[str] = (),
        gitignore: bool = False,
        exclude_caches: bool = False,
        files: Iterable[StorePath] | None = None,
        one_file_system: bool = False,
        reread: bool = False,
        adopt: bool = False,
        created: datetime.datetime | None = None,
        on_problem: "OnProblem | None" = None,
    ) -> Snapshot:
        """Make the snapshot ``name`` of a directory. Files that have not changed are not read.

        ``exclude``: patterns as in a .gitignore; ``gitignore``: leave out what git ignores;
        ``exclude_caches``: directories that are tagged as caches; ``files``: take these paths below
        the directory alone, and what is below them. ``adopt``: take large files over without
        copying them, which makes them read-only where they cannot share blocks. The others are
        those of the command. ``on_problem`` is told of each file that could not be read and is left
        out; without it that is an error in the end, after the snapshot was made of all the others.

        Raises:
            ExistsError (FileExistsError), UsageError: the name. SourceError: see above.
        """
        from dedupfs.transfer.ingest import IngestOptions, ingest_tree
        from dedupfs.transfer.patterns import Patterns
        from dedupfs.transfer.selection import Listed, Selection

        patterns = Patterns([os.fsencode(pattern) for pattern in exclude])
        listed: Listed | None = None
        if files is not None:
            listed = Listed()
            for file in files:
                listed.add(os.fsencode(file))
            if not listed.below:  # what should have told them has failed, more likely than not
                raise UsageError("files names nothing")
        options = IngestOptions(
            one_file_system,
            reread,
            Selection(patterns, gitignore, exclude_caches, listed),
            None if created is None else round(created.timestamp() * 1e9),
            adopt=adopt,
        )
        with self._opened.lock:
            report = ingest_tree(
                self._opened.core,
                Path(directory),
                name,
                tags=texts_of(tags),
                on_error=on_problem,
                options=options,
            )
        assert report.snapshot is not None
        if report.problems and on_problem is None:
            told = told_problems(report.problems)
            raise SourceError(f"snapshot {name!r} was made, but not of everything: {told}")
        return Snapshot(self, report.snapshot)

    # --- views -----------------------------------------------------------------------------------

    @public
    def view(self, name: str, *, snapshot: str | Snapshot | None = None) -> View:
        """Open the view ``name``, which is made when there is none: over ``snapshot``, or over all.

        Raises:
            StoreBusyError: another process, or a mount, has it open; the message says who.
            UsageError (ValueError): it was made over something else.
        """
        return View(self, self._opened, name, _name_of(snapshot))

    @public
    def scratch(self, *, snapshot: str | Snapshot | None = None) -> View:
        """Open a view that is gone when it is closed."""
        return View(self, self._opened, None, _name_of(snapshot))

    @public
    def views(self) -> list[ViewInfo]:
        """Return all views, sorted by name."""
        core = self._opened.core
        found = []
        for row in list_views(core):
            owner = view_owner(core, row.name)
            pid, where = (owner.pid, owner.mountpoint) if owner is not None else (None, "")
            found.append(ViewInfo(row.name, row.base, pid, where))
        return found

    @public
    def remove_view(self, name: str) -> None:
        """Remove a view that nobody has open."""
        with self._opened.lock:
            remove_view(self._opened.core, name)

    # --- space -----------------------------------------------------------------------------------

    @public
    def gc(self, *, dry_run: bool = False) -> Collected:
        """Free the space of what nothing refers to any more; or tell what that would give."""
        from dedupfs.api.space import collected

        with self._opened.lock:
            if not dry_run:
                self._opened.let_go()
                self._fold_views()
            return collected(self._opened.core, dry_run=dry_run)

    def _fold_views(self) -> None:
        """What was deleted in a view is let go of by its fold.

        A view whose fold fails keeps it; on a full disk gc makes room.
        """
        for view in list(self._opened.views):
            try:
                view.fold()
            except StoreError as exc:
                log.warning("fold before gc failed: %s", exc)
        live.fold_all(self.path, lambda told: log.warning("fold before gc failed: %s", told))

    @public
    def stats(self) -> Stats:
        """Tell what the store holds and what that takes. Looks at every row of the index."""
        from dedupfs.api.space import stats

        return stats(self._opened.core)

    @public
    def du(self, *names: str, views: Iterable[str] = ()) -> list[Taken]:
        """Tell what each snapshot and view takes, and what the disk gets back for it.

        With names, only of those; the last one is then of all of them together, whose removal frees
        more than the sum when chunks are shared among them alone.

        Raises:
            NotFoundError (FileNotFoundError): one is not there.
        """
        from dedupfs.api.space import taken

        return taken(self._opened.core, names, tuple(views))

    @public
    def prune(
        self,
        *patterns: str,
        keep_last: int | None = None,
        keep_hourly: int | None = None,
        keep_daily: int | None = None,
        keep_weekly: int | None = None,
        keep_monthly: int | None = None,
        keep_yearly: int | None = None,
        keep_within: str | None = None,
        keep_tag: str | Iterable[str] = (),
        keep_best: str | Iterable[str] = (),
        keep_every: str | int | Iterable[str] = (),
        group_by: str = "all",
        allow_empty: bool = False,
        max_size: int | None = None,
        keep_free: int | None = None,
        dry_run: bool = False,
        gc: bool = True,
    ) -> Pruned:
        """Remove the snapshots that no rule keeps, or those of them that match a pattern.

        Rules are those of the command ``prune``, in its notation: ``keep_best="loss:min=3"``,
        ``keep_within="30d"``, ``keep_every=1000``. Pinned snapshots stay. ``max_size``,
        ``keep_free``: only as many go as make the store, or leave of its disk, so many bytes.

        Raises:
            UsageError (ValueError): a rule is wrong, or nothing would stay.
        """
        from dedupfs.maintenance.policy_text import parse_policy

        policy = parse_policy(
            keep_last=_text_of(keep_last),
            keep_within=keep_within,
            keep_tag=_texts(keep_tag),
            keep_best=_texts(keep_best),
            keep_every=_texts(keep_every),
            group_by=group_by,
            allow_empty=allow_empty,
            keep_hourly=_text_of(keep_hourly),
            keep_daily=_text_of(keep_daily),
            keep_weekly=_text_of(keep_weekly),
            keep_monthly=_text_of(keep_monthly),
            keep_yearly=_text_of(keep_yearly),
        )
        budget = None if max_size is keep_free is None else (max_size, keep_free)
        return self._prune(policy, patterns, budget, dry_run=dry_run, gc=gc)

    def _prune(
        self,
        policy: "Policy",
        patterns: tuple[str, ...],
        sizes: tuple[int | None, int | None] | None,
        *,
        dry_run: bool,
        gc: bool,
    ) -> Pruned:
        from dedupfs.maintenance.prune import Budget, plan, prune
        from dedupfs.maintenance.retention import Moment
        from dedupfs.maintenance.usage import exclusive_bytes

        with self._opened.lock:
            act = plan if dry_run else prune
            budget = None if sizes is None else Budget(self._opened.core, *sizes)
            done = act(self._opened.catalog, policy, Moment(time.time_ns()), patterns, budget)
            freed: int | None = None
            if dry_run:
                freed = exclusive_bytes(self._opened.core, done.names).stored_bytes
            elif gc:
                freed = self.gc().freed_bytes if done.going else 0
        kept = {
            one.candidate.name: tuple(one.reasons or _NO_RULE)
            for one in done.decisions
            if one.stays
        }
        return Pruned(kept, list(done.names), freed)

    @public
    def check(self) -> list[str]:
        """Verify that index, packs, trees and counts agree; return what is wrong, a line each."""
        from dedupfs.maintenance.check import check

        with self._opened.lock:
            report = check(self._opened.core)
        found = [str(problem) for problem in report.problems]
        if report.problems_left_off:
            found.append(f"and {report.problems_left_off} more")
        return found


def texts_of(tags: Mapping[str, object] | None) -> dict[str, str]:
    """Return tags with their values as text."""
    return {key: str(value) for key, value in (tags or {}).items()}


def _name_of(snapshot: str | Snapshot | None) -> str | None:
    return snapshot.name if isinstance(snapshot, Snapshot) else snapshot


def _text_of(count: int | None) -> str | None:
    return None if count is None else str(count)


def _texts(given: str | int | Iterable[str]) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, str | int) else tuple(given)
