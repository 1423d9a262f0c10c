"""What the store knows of a directory that was deduped: its manifest, and its snapshot.

Source: docs/format.md, "Checkouts"; ``namespace/checkouts.py``.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dedupfs.checkout.dedupe.snapshot import Taken, files_of
from dedupfs.checkout.verify import DEDUPE
from dedupfs.errors import CorruptError, NotFoundError, UsageError
from dedupfs.format.manifest import Manifest, Shown
from dedupfs.model import SnapshotInfo
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


def links_of(taken: Iterable[Taken]) -> tuple[tuple[bytes, int], ...]:
    """Return which pack has which content."""
    return tuple(sorted({one.entry.content: one.pack for one in taken}.items()))


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


def put_snapshot(
    store: Store, shown: Shown, directory: Path, *, keep_old: bool = False
) -> SnapshotInfo:
    """Make the snapshot of a deduped directory, in the place of the one of its last run.

    ``keep_old``: beside that one, which has what is nowhere else.
    """
    catalog = SnapshotCatalog(store)
    known = _snapshot_of(store, shown)
    if known is not None and known.root.content == shown.root.content:
        return known
    if known is not None and not known.pinned and not keep_old:
        catalog.remove([known.name])
    name = free_name(store, shown.snapshot)
    return catalog.add(name, shown.root, source=os.fsdecode(os.fsencode(directory)))


def keep_snapshot(store: Store, manifest: Manifest, directory: Path) -> list[str]:
    """Have snapshots of all that a directory's files were; return their names."""
    catalog = SnapshotCatalog(store)
    names = []
    for shown in (manifest.now, manifest.next):
        if shown is None:
            continue
        known = _snapshot_of(store, shown)
        if known is None or known.root.content != shown.root.content:
            name = free_name(store, shown.snapshot)
            known = catalog.add(name, shown.root, source=os.fsdecode(directory))
        names.append(known.name)
    return names


def remove_snapshot(store: Store, shown: Shown) -> None:
    """Remove the snapshot of a directory that is no longer deduped, unless somebody pinned it."""
    known = _snapshot_of(store, shown)
    if known is not None and not known.pinned:
        with suppress(UsageError, NotFoundError):  # pinned or removed just now
            SnapshotCatalog(store).remove([known.name])
