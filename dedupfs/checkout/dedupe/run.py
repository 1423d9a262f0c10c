"""A directory's duplicate files -> links to one copy in the store. The one place that orders steps.

1. Scan: which files are equal (``scan``). 2. Take: a pack for each content, held by the
registration of the directory (``take``). 3. Record: a snapshot of every file as it was, and
the manifest that says where it is. 4. Replace: file by file (``replace``), each compared
with its pack first. So before the first file goes the store has its bytes, durably, and knows what
to give back; a run that ends anywhere is gone on with by the next, or undone.
Source: docs/architecture.md, "Dedupe".
"""

import os
import re
import secrets
import time
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dedupfs.checkout.dedupe.appearance import fits, put_usual_first
from dedupfs.checkout.dedupe.below import opened_below, opened_directory
from dedupfs.checkout.dedupe.forget import note_of_disk
from dedupfs.checkout.dedupe.leftovers import remove_leftovers
from dedupfs.checkout.dedupe.links import find_links
from dedupfs.checkout.dedupe.modes import ModeNotes, give_modes_back
from dedupfs.checkout.dedupe.replace import Replacer
from dedupfs.checkout.dedupe.scan import MIN_BYTES, Found, Group, Inode, Scanner, Why
from dedupfs.checkout.dedupe.snapshot import Taken, put_root
from dedupfs.checkout.dedupe.state import (
    KIND,
    find_deduped,
    free_name,
    links_of,
    put_snapshot,
    remove_snapshot,
    shown_of,
    taken_before,
)
from dedupfs.checkout.dedupe.take import Link, Taker, Target, WholeFiles, whole_files
from dedupfs.checkout.packs import held_packs, pack_path
from dedupfs.errors import UsageError
from dedupfs.format.manifest import Manifest, Shown
from dedupfs.model import TreeEntry
from dedupfs.namespace.checkouts import Registration, begin_checkout, open_checkout
from dedupfs.namespace.rows import check_name
from dedupfs.store import Store
from dedupfs.transfer.builder import object_entry
from dedupfs.transfer.metadata import Xattrs, is_in_mount, read_xattrs
from dedupfs.transfer.report import OnProblem, OnProgress, Problem, Problems, Progress
from dedupfs.transfer.scan import FileKey
from dedupfs.transfer.verbatim import remove_stale_files


@dataclass(frozen=True, slots=True)
class DedupeOptions:
    """How a directory is deduped. ``name``: of the snapshot; by default the directory's own.

    ``forget``: let go of files of which no link is there any more, though it may be elsewhere.
    """

    link: Link = Link.AUTO
    min_bytes: int = MIN_BYTES
    name: str | None = None
    ignore_attributes: bool = False
    forget: bool = False


@dataclass(slots=True)
class DedupeReport:
    """What a dedupe did. ``kept``: files that were replaced before and still are."""

    found: Found
    link: Link
    snapshot: str = ""
    number: int = 0
    replaced: int = 0
    kept: int = 0
    freed_bytes: int = 0
    other_times: int = 0
    """Hard links that show the time of the copy that stays, not their own."""
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)


def plan(
    store: Store,
    directory: Path,
    options: DedupeOptions,
    progress: OnProgress | None = None,
) -> Found:
    """Say what ``dedupe`` would find; nothing is changed, neither there nor in the store."""
    top = Path(os.path.realpath(directory))
    with opened_directory(top) as top_fd:
        return _scan(store, top, top_fd, options, whole_files(store), progress)


def _scan(
    store: Store,
    top: Path,
    top_fd: int,
    options: DedupeOptions,
    known: WholeFiles,
    progress: OnProgress | None,
    half_done: Container[FileKey] = (),
) -> Found:
    if is_in_mount(top_fd):
        raise UsageError(f"{top} is in a mount of dedupfs, where nothing is stored twice")
    scanner = Scanner(
        store,
        top,
        min_bytes=options.min_bytes,
        known=known.paths,
        packs=known.inodes,
        half_done=half_done,
        progress=progress,
    )
    return scanner.run(top_fd)


def dedupe(
    store: Store,
    directory: Path,
    options: DedupeOptions | None = None,
    *,
    progress: OnProgress | None = None,
    on_problem: OnProblem | None = None,
) -> DedupeReport:
    """Replace the duplicates below a directory.

    What stays as it is, and why, is in the result's ``problems`` (``on_problem`` hears at once).

    Raises:
        UsageError: the directory and the store lie in each other, a link that cannot be made here.
        SourceError: the directory cannot be read. StoreError: the store failed; run it again.
    """
    started = time.monotonic()
    options = options or DedupeOptions()
    if options.name is not None:
        check_name(options.name)
    top = Path(os.path.realpath(directory))
    remove_stale_files(store)
    with opened_directory(top) as top_fd:
        known = whole_files(store)
        notes = ModeNotes(store, top)
        half_done = give_modes_back(top_fd, notes, known.inodes)
        found = _scan(store, top, top_fd, options, known, progress, half_done)
        report = DedupeReport(found, options.link, problems=list(found.skipped))
        remove_leftovers(store, top_fd, Problems(report.problems, on_problem), found.leftovers)
        before = find_deduped(store, top)
        if before is not None or any(group.duplicates for group in found.groups):
            with _registered(store, before) as registration:
                run = _Run(store, registration, top, top_fd, half_done, options, report, on_problem)
                run.take(known, notes, progress)
                run.record(notes)
                run.replace(progress)
                run.finish()
    report.seconds = time.monotonic() - started
    return report


def _registered(store: Store, before: Manifest | None) -> Registration:
    return begin_checkout(store) if before is None else open_checkout(store, before.number)


class _Run:
    """One run, after the scan."""

    def __init__(
        self,
        store: Store,
        registration: Registration,
        top: Path,
        top_fd: int,
        half_done: dict[FileKey, int],
        options: DedupeOptions,
        report: DedupeReport,
        on_problem: OnProblem | None,
    ) -> None:
        self._store = store
        self._registration = registration
        self._top = top
        self._top_fd = top_fd
        self._options = options
        self._report = report
        self._problems = Problems(report.problems, on_problem)
        self._half_done = half_done
        self._kept: list[Taken] = []
        self._lost: dict[bytes, int] = {}
        self._keeps_old = False
        self._work: list[tuple[Inode, list[Taken]]] = []
        report.number = registration.number
        report.link = self._link()

    def _link(self) -> Link:
        """Return how files become links: as they did last time."""
        manifest = self._registration.manifest
        shown = (manifest.next or manifest.now) if manifest is not None else None
        if shown is None:
            return self._options.link
        before = Link(shown.link)
        if self._options.link not in (Link.AUTO, before):
            raise UsageError(
                f"{self._top} was deduped with --link {before}; use that, or --undo it first"
            )
        return before

    def take(self, known: WholeFiles, notes: ModeNotes, progress: OnProgress | None) -> None:
        """Have a pack for every group that has duplicates; keep what was done before."""
        self._keep_links()
        ignored = self._options.ignore_attributes
        groups = [group for group in self._report.found.groups if group.duplicates]
        done = Progress(bytes_total=sum(group.size for group in groups))

        def on_bytes(length: int) -> None:
            done.bytes_done += length
            if progress is not None:
                progress(done)

        taker = Taker(
            self._store,
            self._registration.owner,
            self._top_fd,
            self._report.link,
            known,
            notes,
            self._problems,
            on_bytes,
        )
        for group in groups:
            if self._report.link in (Link.AUTO, Link.HARDLINK) and not ignored:
                put_usual_first(self._top_fd, group)
            done.path = group.inodes[0].paths[0]
            target = taker.take(group)
            if target is not None:
                self._take_group(group, target, taker.link)
        self._report.link = taker.link

    def _keep_links(self) -> None:
        """Go on with the links that are there; have their packs kept that may be elsewhere."""
        manifest = self._registration.manifest
        if manifest is None:
            return
        before = taken_before(self._store, manifest)
        held = dict(manifest.links)
        found = find_links(self._store, self._top_fd, before, held, self._report.link)
        for one in found.there:
            self._kept.append(one)
            self._go_on_with(one)
        self._report.kept = len(self._kept)
        if found.lost and not self._options.forget:
            self._lost = found.lost
            self._keeps_old = found.newly_lost
            self._problems.add(
                b"",
                f"no link to {len(found.lost)} contents that were replaced is here any more; the "
                "store keeps them for links that may be elsewhere, until --forget",
            )

    def _go_on_with(self, one: Taken) -> None:
        """Plan to replace what became a pack in a run that ended before its turn came."""
        status = self._report.found.linked.get(one.path)
        if self._report.link is Link.SYMLINK and status is not None:
            key = (status.st_dev, status.st_ino)
            self._work.append((Inode(key, status, [one.path], is_pack=True), [one]))

    def _take_group(self, group: Group, target: Target, link: Link) -> None:
        pack = pack_path(self._store, target.pack)
        must_fit = link is Link.HARDLINK and not self._options.ignore_attributes
        for inode in group.inodes:
            if inode.key in group.shared:
                continue
            try:
                with opened_below(self._top_fd, inode.paths[0]) as fd:
                    entry = self._entry(inode, read_xattrs(fd), target)
                    if must_fit and not fits(fd, entry, pack):
                        self._problems.add(inode.paths[0], Why.ATTRIBUTES)
                        continue
            except OSError as exc:
                self._problems.add_os_error(inode.paths[0], "stays as it is", exc)
                continue
            linked = inode.key if len(inode.paths) > 1 else None
            names = [Taken(path, entry, target.pack, linked) for path in inode.paths]
            self._work.append((inode, names))
            if link is Link.HARDLINK and entry.mtime_ns != os.stat(pack).st_mtime_ns:
                self._report.other_times += len(names)

    def _entry(self, inode: Inode, xattrs: Xattrs, target: Target) -> TreeEntry:
        """Return what the file was before anything was done to it."""
        status = inode.status
        entry = object_entry(b"", status, xattrs, target.content, inode.size, target.hole_bytes)
        mode = self._half_done.get(inode.key, status.st_mode)
        return msgspec.structs.replace(entry, mode=mode, atime_ns=status.st_atime_ns)

    # --- record and replace -------------------------------------------------------------------

    def record(self, notes: ModeNotes) -> None:
        """Say durably what every file was, and which pack has its bytes."""
        taken = self._all()
        if taken:
            self._save_next(taken)
            notes.clear()

    def _save_next(self, taken: list[Taken]) -> Shown:
        """Save what the directory is about to show, beside what it may still show."""
        root = put_root(self._store, self._top_fd, taken)
        self._registration.hold([root], {one.pack for one in taken})
        manifest = self._manifest()
        links = dict([*manifest.links, *links_of(taken)])
        new = held_packs(self._store, (one.pack for one in taken))
        packs = {held.pack: held for held in (*manifest.packs, *new)}
        before = manifest.next or manifest.now
        if before is not None:
            name, sequence = before.snapshot, before.sequence
        else:
            name = free_name(self._store, self._options.name or default_name(self._top))
            sequence = 0
        shown = Shown(name, sequence, b"", root, str(self._report.link))
        self._registration.save(
            msgspec.structs.replace(
                manifest,
                next=shown,
                packs=tuple(packs.values()),
                links=tuple(sorted(links.items())),
            )
        )
        return shown

    def _manifest(self) -> Manifest:
        manifest = self._registration.manifest
        note = note_of_disk(self._top_fd)
        if manifest is not None:
            return msgspec.structs.replace(manifest, detail=note)
        token = secrets.token_hex(16)
        directory = os.fsencode(self._top)
        number, now_ns = self._registration.number, time.time_ns()
        return Manifest(number, KIND, token, directory, now_ns, detail=note)

    def _all(self) -> list[Taken]:
        again = {one.path for _, names in self._work for one in names}
        kept = [one for one in self._kept if one.path not in again]
        return [*kept, *(one for _, names in self._work for one in names)]

    def replace(self, progress: OnProgress | None) -> None:
        """Replace the files, one after the other; from here on nothing is lost by stopping."""
        replacer = Replacer(self._top_fd, self._report.link, self._problems)
        done = Progress(bytes_total=sum(inode.size for inode, _ in self._work))
        replaced = []
        for inode, names in self._work:
            path = pack_path(self._store, names[0].pack)
            is_pack = os.path.samestat(inode.status, os.stat(path))
            if replacer.replace(inode, names, path):
                replaced.append((inode, names))
                if not is_pack:
                    self._report.replaced += len(names)
                    self._report.freed_bytes += inode.disk_bytes
            done.bytes_done += inode.size
            if progress is not None:
                progress(done)
        self._work = replaced

    def finish(self) -> None:
        """Say what is there now; let go of what was not used after all."""
        registration = self._registration
        taken = self._all()
        if not taken:
            if registration.manifest is not None and not self._lost:
                remove_snapshot(self._store, shown_of(registration.manifest))
                registration.drop()
            return
        shown = self._save_next(taken)
        info = put_snapshot(self._store, shown, self._top, keep_old=self._keeps_old)
        shown = msgspec.structs.replace(shown, snapshot=info.name, sequence=info.sequence)
        links = {**self._lost, **dict(links_of(taken))}
        registration.save(
            msgspec.structs.replace(
                self._manifest(),
                now=shown,
                next=None,
                packs=held_packs(self._store, links.values()),
                links=tuple(sorted(links.items())),
            )
        )
        registration.settle()
        self._report.snapshot = info.name


def default_name(directory: Path) -> str:
    """Return a name for a directory's snapshot."""
    kept = re.sub(r"[^A-Za-z0-9._@+=-]", "_", directory.name)[:200].lstrip(".-")
    return f"{kept or 'directory'}-deduped"
