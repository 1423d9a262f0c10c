"""What is known of a directory that was deduped: its manifest, and which files still are links.

Source: docs/format.md, "Checkouts"; ``namespace/checkouts.py``.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dedupfs.checkout.dedupe_scan import parent_of
from dedupfs.checkout.dedupe_snapshot import Taken, files_of
from dedupfs.checkout.dedupe_take import Link
from dedupfs.checkout.verify import DEDUPE
from dedupfs.errors import CorruptError, NotFoundError, UsageError
from dedupfs.format.manifest import HeldPack, Manifest, Shown
from dedupfs.model import PackKind, SnapshotInfo
from dedupfs.namespace.checkouts import read_checkouts
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.store import Store

KIND = DEDUPE
"""What the manifest of a deduped directory calls itself."""


def find_deduped(store: Store, directory: Path) -> Manifest | None:
    """Return the manifest of a directory that was deduped, or is half so."""
    wanted = os.fsencode(directory)
    manifests, _damaged = read_checkouts(store)
    found = [one for one in manifests if one.kind == KIND and one.directory == wanted]
    return found[-1] if found else None


def shown_of(manifest: Manifest) -> Shown:
    """Return what the directory shows, or is being made to show."""
    shown = manifest.next or manifest.now
    if shown is None:
        raise CorruptError(f"checkout {manifest.number} shows nothing")
    return shown


def taken_before(store: Store, manifest: Manifest | None) -> Iterator[Taken]:
    """Yield what earlier runs took, each path once; whether it is still so is another question."""
    if manifest is None:
        return
    packs = dict(manifest.links)
    seen: set[bytes] = set()
    for generation, shown in enumerate((manifest.next, manifest.now)):
        if shown is None:
            continue
        for path, entry, link_id in files_of(store, shown.root):
            if path not in seen and entry.content in packs:
                seen.add(path)
                linked = (generation, int.from_bytes(link_id)) if link_id is not None else None
                yield Taken(path, entry, packs[entry.content], linked)


def held_packs(store: Store, taken: Iterable[Taken]) -> tuple[HeldPack, ...]:
    """Return the packs of these files, as their files are now."""
    found = []
    for pack in sorted({one.pack for one in taken}):
        status = os.stat(pack_path(store, pack))
        found.append(HeldPack(pack, status.st_size, status.st_mtime_ns))
    return tuple(found)


def links_of(taken: Iterable[Taken]) -> tuple[tuple[bytes, int], ...]:
    """Return which pack has which content."""
    return tuple(sorted({one.entry.content: one.pack for one in taken}.items()))


def pack_path(store: Store, pack: int) -> Path:
    """Return the file that links point at."""
    return store.layout.pack(pack, PackKind.VERBATIM)


def is_in_place(store: Store, top_fd: int, one: Taken, link: Link) -> bool:
    """Whether a file still is what it was replaced by: a link to its pack.

    Where symbolic links are made, the file that became the pack is a hard link until its turn.
    What shares blocks with its pack is the user's own file; it counts while it looks the same.
    """
    with suppress(OSError), parent_of(top_fd, one.path) as (directory_fd, name):
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        if link is Link.SYMLINK and stat.S_ISLNK(status.st_mode):
            target = os.readlink(name, dir_fd=directory_fd)
            return target == os.fsencode(pack_path(store, one.pack))
        if link is not Link.REFLINK:
            return os.path.samestat(status, os.stat(pack_path(store, one.pack)))
        seen = (status.st_mode, status.st_size, status.st_mtime_ns)
        return seen == (one.entry.mode, one.entry.size, one.entry.mtime_ns)
    return False


# --- the snapshot -----------------------------------------------------------------------------


def free_name(store: Store, name: str) -> str:
    """Return a name that no snapshot has."""
    catalog = SnapshotCatalog(store)
    free, number = name, 1
    while catalog.find(free) is not None:
        number += 1
        free = f"{name}-{number}"
    return free


def _snapshot_of(store: Store, shown: Shown) -> SnapshotInfo | None:
    """Return the snapshot that was made of a deduped directory, if it is still there.

    A run that ended when it had made it could not note its sequence number any more.
    """
    known = SnapshotCatalog(store).find(shown.snapshot)
    if known is None:
        return None
    is_ours = known.sequence == shown.sequence or known.root.content == shown.root.content
    return known if is_ours else None


def put_snapshot(store: Store, shown: Shown, directory: Path) -> SnapshotInfo:
    """Make the snapshot of a deduped directory, in the place of the one of its last run."""
    catalog = SnapshotCatalog(store)
    known = _snapshot_of(store, shown)
    if known is not None and known.root.content == shown.root.content:
        return known
    if known is not None and not known.pinned:
        catalog.remove([known.name])
    name = free_name(store, shown.snapshot)
    return catalog.add(name, shown.root, source=os.fsdecode(os.fsencode(directory)))


def remove_snapshot(store: Store, shown: Shown) -> None:
    """Remove the snapshot of a directory that is no longer deduped, unless somebody pinned it."""
    known = _snapshot_of(store, shown)
    if known is not None and not known.pinned:
        with suppress(UsageError, NotFoundError):  # pinned or removed just now
            SnapshotCatalog(store).remove([known.name])
