"""A deduped directory -> plain files again, each with the attributes that it had.

What is no longer what the dedupe made of it (changed, replaced, removed) is the user's and stays.
The store keeps everything until the last file is back, so a run that ends anywhere is gone on with
by the next.
"""

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.checkout.dedupe.below import opened_below, opened_directory, parent_of
from dedupfs.checkout.dedupe.leftovers import remove_leftovers
from dedupfs.checkout.dedupe.links import FoundLinks, find_links, is_in_place
from dedupfs.checkout.dedupe.modes import ModeNotes, give_modes_back
from dedupfs.checkout.dedupe.scan import Why
from dedupfs.checkout.dedupe.snapshot import Taken
from dedupfs.checkout.dedupe.state import (
    find_deduped,
    keep_snapshot,
    remove_snapshot,
    shown_of,
    taken_before,
)
from dedupfs.checkout.dedupe.swap import Swaps, undo_name
from dedupfs.checkout.dedupe.take import Link, whole_files
from dedupfs.errors import (
    CorruptError,
    MissingRecordError,
    NotFoundError,
    StoreFullError,
    UsageError,
)
from dedupfs.model import TreeEntry
from dedupfs.namespace.checkouts import open_checkout
from dedupfs.namespace.contents import load_recipe
from dedupfs.store import Store
from dedupfs.transfer.export import data_runs
from dedupfs.transfer.metadata import apply_metadata
from dedupfs.transfer.report import OnProblem, OnProgress, Problem, Problems, Progress

SPARE_BYTES = 1 << 20
_KEPT = (
    "the store still keeps contents for links that were moved away before the last run: take what "
    "you need from an older snapshot, then --undo --forget"
)
_LOST = "not all that was replaced has a name here any more; what has none is in the snapshot"
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class UndoReport:
    """What an undo did. ``independent``: files that share blocks, which are plain files already."""

    restored: int = 0
    restored_bytes: int = 0
    independent: int = 0
    needed_bytes: int = 0
    is_complete: bool = False
    problems: list[Problem] = field(default_factory=list)


def undo(
    store: Store,
    directory: Path,
    *,
    dry_run: bool = False,
    forget: bool = False,
    progress: OnProgress | None = None,
    on_problem: OnProblem | None = None,
) -> UndoReport:
    """Make every file that ``dedupe`` replaced a plain file again.

    ``forget``: end it though the store keeps contents for links that an earlier run did not find.

    Raises:
        NotFoundError: the directory was not deduped. UsageError: a dedupe has to be ended first.
        StoreFullError: there is no room for it all.
        SourceError: the directory cannot be read.
    """
    top = Path(os.path.realpath(directory))
    report = UndoReport()
    with opened_directory(top) as top_fd, ExitStack() as stack:
        notes = ModeNotes(store, top)
        manifest = find_deduped(store, top)
        if not dry_run and give_modes_back(top_fd, notes, whole_files(store).inodes):
            raise UsageError(
                f"the last dedupe of {top} was cut short when some files had become a part of the "
                f"store: run 'dedupfs dedupe {store.path} {top}' first, then --undo"
            )
        if manifest is None:
            raise NotFoundError(f"{top} is not deduped with {store.path}")
        link = Link(shown_of(manifest).link)
        problems = Problems(report.problems, on_problem)
        run = _Undo(store, top_fd, link, report, problems)
        before = list(taken_before(store, manifest))
        found = find_links(store, top_fd, before, dict(manifest.links), link)
        todo = run.find(found)
        run.require_room()
        if dry_run:
            return report
        registration = stack.enter_context(open_checkout(store, manifest.number))
        remove_leftovers(store, top_fd, problems)
        run.restore(todo, progress)
        if run.failed:
            return report
        if found.lost.keys() - {one.entry.content for one in before} and not forget:
            problems.add(b"", _KEPT)
            return report
        if found.lost:
            names = ", ".join(keep_snapshot(store, manifest, top))
            problems.add(b"", f"{_LOST} {names}, which stays; links to it elsewhere break")
        else:
            for known in (manifest.now, manifest.next):
                if known is not None:
                    remove_snapshot(store, known)
        registration.drop()
        notes.clear()
        report.is_complete = True
    return report


class _Undo:
    """One run."""

    def __init__(
        self, store: Store, top_fd: int, link: Link, report: UndoReport, problems: Problems
    ) -> None:
        self._store = store
        self._top_fd = top_fd
        self._link = link
        self._report = report
        self._problems = problems
        self._restored: dict[tuple[int, int], bytes] = {}
        self.failed = 0

    def find(self, found: FoundLinks) -> list[Taken]:
        """Return what has to be restored; tell what is the user's by now."""
        todo: list[Taken] = []
        linked: set[tuple[int, int]] = set()
        for one in found.gone:
            self._tell_changed(one)
        for one in found.there:
            if self._link is Link.REFLINK:
                self._report.independent += 1
            else:
                todo.append(one)
                if one.linked is None or one.linked not in linked:
                    self._report.needed_bytes += one.entry.size - one.entry.hole_bytes
                if one.linked is not None:
                    linked.add(one.linked)
        return todo

    def _tell_changed(self, one: Taken) -> None:
        if self._link is Link.REFLINK:
            return  # it was a plain file all the time
        with suppress(OSError), opened_below(self._top_fd, one.path) as fd:
            status = os.fstat(fd)
            if (status.st_size, status.st_mtime_ns) == (one.entry.size, one.entry.mtime_ns):
                if one.linked is not None:
                    self._restored[one.linked] = one.path
                return  # it was never replaced, or it is restored already
        self._problems.add(one.path, "not restored: it is no longer what dedupe made of it")

    def require_room(self) -> None:
        """Refuse to begin what could not be ended."""
        room = os.fstatvfs(self._top_fd)
        free_bytes = room.f_bavail * room.f_frsize
        if self._report.needed_bytes and self._report.needed_bytes + SPARE_BYTES > free_bytes:
            raise StoreFullError(
                f"to undo takes {self._report.needed_bytes} bytes, and {free_bytes} are free"
            )

    def restore(self, todo: list[Taken], progress: OnProgress | None) -> None:
        """Restore the files, one after the other."""
        done = Progress(len(todo), sum(one.entry.size for one in todo))
        for one in todo:
            done.path = one.path
            try:
                self._restore(one)
            except (CorruptError, MissingRecordError) as exc:
                self._failed(one, f"not restored, the store has lost it: {exc}")
            except OSError as exc:
                self._failed(one, f"not restored: {exc.strerror or exc}")
            done.files_done += 1
            done.bytes_done += one.entry.size
            if progress is not None:
                progress(done)

    def _failed(self, one: Taken, message: str) -> None:
        self.failed += 1
        self._problems.add(one.path, message)

    def _restore(self, one: Taken) -> None:
        with ExitStack() as stack:
            directory_fd, name = stack.enter_context(parent_of(self._top_fd, one.path))
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
            stack.callback(os.close, fd)
            if not is_in_place(self._store, self._top_fd, one, self._link):
                self._problems.add(one.path, Why.CHANGED)
                return
            swaps = Swaps(fd, None)
            stack.callback(swaps.close)
            if not swaps.add(
                directory_fd, name, undo_name(), lambda at_fd, new: self._make(at_fd, new, one)
            ):
                self._problems.add(one.path, Why.CHANGED)
                return
            if not swaps.settle():
                self._problems.add(one.path, Why.CHANGED)
                return
        self._report.restored += 1
        self._report.restored_bytes += one.entry.size
        if one.linked is not None:
            self._restored.setdefault(one.linked, one.path)

    def _make(self, directory_fd: int, name: bytes, one: Taken) -> None:
        """Make the file as it was, on disk, or one more name of it."""
        known = self._restored.get(one.linked) if one.linked is not None else None
        if known is not None:
            with opened_below(self._top_fd, known) as fd:
                # With a directory to start from, needless though it is, Python follows the link.
                os.link(
                    b"/proc/self/fd/%d" % fd,
                    name,
                    src_dir_fd=fd,
                    dst_dir_fd=directory_fd,
                    follow_symlinks=True,
                )
            return
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=directory_fd)
        try:
            self._write(fd, one.entry)
            apply_metadata(
                fd,
                one.entry,
                lambda what, exc: self._problems.add_os_error(one.path, f"{what} not set", exc),
            )
            os.fsync(fd)
        finally:
            os.close(fd)

    def _write(self, fd: int, entry: TreeEntry) -> None:
        recipe = load_recipe(self._store, entry.content)
        for pieces, _length in data_runs(recipe):
            data = memoryview(self._store.read(pieces))
            file_offset = pieces[0].file_offset
            while data:
                written = os.pwrite(fd, data, file_offset)
                file_offset += written
                data = data[written:]
        os.truncate(fd, recipe.size)
