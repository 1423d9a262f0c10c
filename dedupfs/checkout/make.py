"""Making a checkout, moving it to another snapshot, ending it: the order of durable steps.

What is needed is pinned and the manifest written before anything is made in the directory, and the
directory is synced before a manifest says that something is not needed any more. So no link is ever
without its pack, and whatever is cut off goes on when it is done again. Source: docs/format.md,
"Checkouts".
"""

import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dedupfs.checkout.apply import Applier, conflicts
from dedupfs.checkout.changes import Comparison, walk
from dedupfs.checkout.objects import (
    COPY,
    HARDLINK,
    REFLINK,
    SYMLINK,
    CheckoutReport,
    ObjectMaker,
    is_linkable,
)
from dedupfs.checkout.packs import PackFinder, held_packs, pack_path
from dedupfs.checkout.place import (
    make_top,
    mark,
    open_top,
    require_outside,
    works_in,
)
from dedupfs.checkout.target import Links, still_there, sync_file_system
from dedupfs.errors import UsageError
from dedupfs.format.manifest import HeldPack, Manifest, Shown
from dedupfs.model import ID_BYTES, SnapshotInfo, TreeEntry
from dedupfs.namespace.checkouts import Registration, begin_checkout
from dedupfs.namespace.trees import links_id_of
from dedupfs.store import Store
from dedupfs.transfer.report import OnProblem, Problems, shown

AUTO = "auto"
KIND = "checkout"
_CONFLICTS_SHOWN_MAX = 10


@dataclass(frozen=True, slots=True)
class What:
    """What a checkout is to show: a directory of a snapshot."""

    info: SnapshotInfo
    path: bytes
    top: TreeEntry

    def shown(self, link: str) -> Shown:
        """Return it as a manifest has it."""
        content = self.top.content[:ID_BYTES]
        links_id = links_id_of(self.info.root)
        if content and links_id is not None and self.top.has_links:
            content += links_id
        root = msgspec.structs.replace(self.top, name=b"", slot=0, content=content)
        return Shown(self.info.name, self.info.sequence, self.path, root, link)


# --- making ----------------------------------------------------------------------------------


def make_checkout(
    store: Store,
    what: What,
    directory: Path,
    link: str = AUTO,
    *,
    bytes_min: int | None = None,
    on_error: OnProblem | None = None,
) -> CheckoutReport:
    """Make ``directory``, which does not exist or is empty, show a directory of a snapshot.

    ``bytes_min``: smaller files are copies whatever ``link`` says.

    Raises:
        UsageError: the directory is not empty, or the link cannot be made there.
        SourceError: the directory cannot be written; what was begun can be gone on with.
    """
    directory = Path(os.path.abspath(directory))
    require_outside(store, directory)
    top_fd, was_made = make_top(directory)
    try:
        link = choose_link(store, top_fd, link)
        with begin_checkout(store) as registration:
            manifest = Manifest(
                number=registration.number,
                kind=KIND,
                token=secrets.token_hex(8),
                directory=os.fsencode(directory),
                created_ns=time.time_ns(),
                next=what.shown(link),
            )
            run = _Run(store, registration, top_fd, on_error)
            try:
                return run.go(manifest, bytes_min=bytes_min)
            except BaseException:
                was_made = was_made and registration.manifest is None
                raise
    except BaseException:
        if was_made:  # and nothing in it: there is no manifest
            with suppress(OSError):
                os.rmdir(directory)
        raise
    finally:
        os.close(top_fd)


def update_checkout(
    store: Store,
    registration: Registration,
    directory: Path,
    what: What | None,
    link: str | None = None,
    *,
    bytes_min: int | None = None,
    force: bool = False,
    on_error: OnProblem | None = None,
) -> CheckoutReport:
    """Make a checkout show something else, touching only what differs.

    ``what``: None goes on with what was begun, or makes what is missing of what it shows. An
    update that was cut off is ended first. ``link``: as it was, unless given.

    Raises:
        UsageError: files that would go were changed by their user; nothing was done.
        SourceError: the directory cannot be written.
    """
    top_fd = open_top(directory)
    try:
        manifest = registration.manifest
        assert manifest is not None
        run = _Run(store, registration, top_fd, on_error, force=force)
        if manifest.next is not None:
            wanted = what.shown(link or manifest.next.link) if what is not None else None
            run.go(manifest, bytes_min=bytes_min, resumed=True)
            manifest = registration.manifest
            if wanted is None or (manifest is not None and wanted == manifest.now):
                return run.report
        assert manifest is not None
        assert manifest.now is not None
        old = manifest.now
        mode = choose_link(store, top_fd, link) if link is not None else old.link
        target = what.shown(mode) if what is not None else msgspec.structs.replace(old, link=mode)
        manifest = msgspec.structs.replace(
            manifest, next=target, directory=os.fsencode(os.path.abspath(directory))
        )
        return run.go(manifest, bytes_min=bytes_min, everything=mode != old.link or what is None)
    finally:
        os.close(top_fd)


def remove_checkout(
    store: Store,
    registration: Registration,
    directory: Path | None,
    *,
    keep_files: bool = False,
    force: bool = False,
    on_error: OnProblem | None = None,
) -> CheckoutReport:
    """End a checkout: what it made is removed, what its user added or changed stays.

    ``directory``: None when it has gone. When the result has ``problems``, some of it is still
    there, and so is the checkout, which holds what links there point at: remove it again.

    Raises:
        UsageError: files are to be kept that are symbolic links into the store.
    """
    manifest = registration.manifest
    assert manifest is not None
    report = CheckoutReport(number=manifest.number)
    states = [state for state in (manifest.next, manifest.now) if state is not None]
    if keep_files and directory is not None and any(s.link == SYMLINK for s in states):
        raise UsageError(
            "its links would break: make it independent first, with 'dedupfs checkout update "
            "DIR --link copy'"
        )
    if directory is not None and not keep_files:
        top_fd = open_top(directory)
        try:
            run = _Run(store, registration, top_fd, on_error, force=force)
            run.report = report
            for state in states:
                run.apply(manifest, state, None)
            report.kept = still_there(top_fd, report.kept)
            sync_file_system(top_fd)
        finally:
            os.close(top_fd)
        with suppress(OSError):  # what stays in it is its user's
            os.rmdir(directory)
    if not report.problems:
        registration.drop()
    return report


def choose_link(store: Store, top_fd: int, link: str) -> str:
    """Return how files are to be linked: what is asked for, or the best that works there.

    Raises:
        UsageError: what is asked for does not work there.
    """
    if link in (SYMLINK, COPY):
        return link
    for mode in (REFLINK, HARDLINK) if link == AUTO else (link,):
        if works_in(store, top_fd, mode):
            return mode
    if link == AUTO:
        return SYMLINK
    raise UsageError(
        f"no {link} from the store to there: they must be on one file system"
        + (" that shares blocks (XFS, btrfs)" if link == REFLINK else "")
    )


class _Run:
    """One way from what a manifest says is there to what is to be."""

    def __init__(
        self,
        store: Store,
        registration: Registration,
        top_fd: int,
        on_error: OnProblem | None,
        *,
        force: bool = False,
    ) -> None:
        self._store = store
        self._registration = registration
        self._top_fd = top_fd
        self._force = force
        self.report = CheckoutReport(number=registration.number)
        self._on_error = on_error
        self._started = time.monotonic()

    def go(
        self,
        manifest: Manifest,
        *,
        bytes_min: int | None,
        resumed: bool = False,
        everything: bool = False,
    ) -> CheckoutReport:
        """Do all steps, from ``manifest.now`` to ``manifest.next``."""
        target = manifest.next
        assert target is not None
        self.report.link = target.link
        before = manifest.now
        links = Links(dict(manifest.links), lambda pack: pack_path(self._store, pack))
        changes = self._changes(before, target, everything=everything)
        self._require_unchanged(changes, links, resumed=resumed)
        self._registration.hold([target.root])
        if not resumed:
            manifest = self._find_packs(manifest, target, changes, bytes_min)
            self._registration.save(manifest)
            mark(self._top_fd, self._store, manifest)
        self.apply(manifest, before, target, resumed=resumed, everything=everything)
        mark(self._top_fd, self._store, manifest)  # no tree has a say in this attribute
        sync_file_system(self._top_fd)
        self._finish(manifest, target, changes)
        self.report.seconds = time.monotonic() - self._started
        return self.report

    def _changes(
        self, before: Shown | None, after: Shown | None, *, everything: bool
    ) -> Comparison:
        return Comparison(
            self._store,
            before.root if before is not None else None,
            after.root if after is not None else None,
            everything=everything,
        )

    def _require_unchanged(self, comparison: Comparison, links: Links, *, resumed: bool) -> None:
        if self._force:
            return
        found = conflicts(self._top_fd, comparison.changes(), links, resumed=resumed)
        if found:
            listed = ", ".join(map(shown, found[:_CONFLICTS_SHOWN_MAX]))
            more = len(found) - _CONFLICTS_SHOWN_MAX
            listed += f" and {more:,} more" if more > 0 else ""
            raise UsageError(
                f"changed by their user, and would be overwritten (--force does): {listed}"
            )

    def _find_packs(
        self, manifest: Manifest, target: Shown, comparison: Comparison, bytes_min: int | None
    ) -> Manifest:
        """Have a pack for each file that is to be a link, and is not one already."""
        least = self._store.config.verbatim_bytes_min if bytes_min is None else bytes_min
        known = dict(manifest.links)
        needed: dict[bytes, TreeEntry] = {}
        for change in comparison.changes():
            entry = change.after.entry if change.after is not None else None
            if entry is None or entry.content in known:
                continue
            if is_linkable(entry, target.link, least):
                needed.setdefault(entry.content, entry)
        linked = PackFinder(self._store, self._registration).find(needed)
        self.report.assembled = linked.assembled
        self.report.assembled_bytes = linked.assembled_bytes
        links = {**known, **linked.packs}
        return msgspec.structs.replace(
            manifest,
            links=tuple(sorted(links.items())),
            packs=self._described(manifest.packs, links.values()),
        )

    def _described(self, old: Iterable[HeldPack], packs: Iterable[int]) -> tuple[HeldPack, ...]:
        """Return packs as they were when this checkout took them, so that changes are seen."""
        known = {held.pack: held for held in old}
        wanted = set(packs)
        kept = [known[pack] for pack in wanted if pack in known]
        new = held_packs(self._store, wanted - known.keys())
        return tuple(sorted([*kept, *new], key=lambda held: held.pack))

    def apply(
        self,
        manifest: Manifest,
        before: Shown | None,
        after: Shown | None,
        *,
        resumed: bool = False,
        everything: bool = False,
    ) -> None:
        """Change the directory."""
        links = Links(dict(manifest.links), lambda pack: pack_path(self._store, pack))
        problems = Problems(self.report.problems, self._on_error)
        link = after.link if after is not None else COPY
        comparison = self._changes(before, after, everything=everything)
        applier = Applier(
            self._store,
            self._top_fd,
            after.root if after is not None and before is not None else None,
            links,
            link,
            ObjectMaker(self._store, links, link, self.report, problems),
            self.report,
            problems,
            token=manifest.token,
            resumed=resumed,
            force=self._force,
        )
        applier.run(comparison.changes())
        for path in comparison.impossible:
            problems.add(path, "not made: no file can have this name")
            self.report.damaged += 1

    def _finish(self, manifest: Manifest, target: Shown, comparison: Comparison) -> None:
        """Write what is there now, and let go of what nothing there needs.

        A link that could not be removed needs its pack, whatever the new tree says.
        """
        has_links = target.link in (SYMLINK, HARDLINK) or self.report.problems
        links = list(manifest.links) if has_links else []
        if not self.report.problems and _takes_links_away(
            comparison, {content for content, _ in links}
        ):
            used = {item.entry.content for _path, item in walk(self._store, target.root)}
            links = [(content, pack) for content, pack in links if content in used]
        self._registration.save(
            msgspec.structs.replace(
                manifest,
                now=target,
                next=None,
                links=tuple(links),
                packs=self._described(manifest.packs, [pack for _, pack in links]),
            )
        )
        self._registration.settle()


def _takes_links_away(comparison: Comparison, linked: set[bytes]) -> bool:
    """Whether a file that is a link goes or becomes another; others may be the same link."""
    if not linked:
        return False
    for change in comparison.changes():
        before = change.before.entry.content if change.before is not None else b""
        after = change.after.entry.content if change.after is not None else b""
        if before != after and before in linked:
            return True
    return False
