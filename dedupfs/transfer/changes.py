"""What a view changed against what it was made over, at the cost of what it changed.

Knows the trees of the last fold: whoever asks has the view folded first. A whole snapshot that the
view hides is one difference, its directory; nothing below is looked at.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from dedupfs.errors import NotFoundError
from dedupfs.format.tree import decode_view_root
from dedupfs.model import RecordKind, TreeEntry, ViewRoot
from dedupfs.namespace.directory import CATALOG_SLOTS_START, keeps_links, snapshot_entry
from dedupfs.namespace.rows import ViewRow, decode_view_row
from dedupfs.namespace.snapshots import SnapshotCatalog
from dedupfs.namespace.trees import TreeReader, tree_id_of
from dedupfs.store import Store, Table
from dedupfs.transfer.compare import Difference, Kind, Side, compare
from dedupfs.transfer.entries import entries_below


@contextmanager
def held_root(store: Store, name: str) -> Iterator[ViewRoot]:
    """Give the root of a view, whose trees stay for as long: a mount may fold and free meanwhile.

    Raises:
        NotFoundError: no such view.
    """
    with store.transaction() as txn:
        found = txn.get(Table.VIEWS, name.encode("utf-8", "surrogateescape"))
        if found is None:
            raise NotFoundError(f"no view {name!r} in {store.path}")
        row: ViewRow = decode_view_row(found)
        txn.pin(store.owner, row.root_id)
    try:
        yield decode_view_root(store.get(row.root_id, RecordKind.VIEW_ROOT))
    finally:
        with store.transaction() as txn:
            txn.unpin(store.owner, row.root_id)


def view_changes(store: Store, view: ViewRoot) -> Iterator[Difference]:
    """Yield what the view added, removed and changed, in path order.

    Raises:
        NotFoundError: the snapshot that it was made over is gone.
        MissingRecordError, CorruptError: a record that had to be looked at is damaged.
    """
    reader = TreeReader(store)
    catalog = SnapshotCatalog(store)
    if not view.base:
        yield from _catalog_changes(store, reader, catalog, view.root)
        return
    base = catalog.find(view.base)
    if base is None or base.created_ns > view.created_ns:
        why = "has another name now, or is gone"
        raise NotFoundError(
            f"snapshot {view.base!r}, which view {view.name!r} was made over, {why}"
            + ("; the one of that name is newer than the view" if base is not None else "")
        )
    yield from compare(store, base.root, view.root, reader=reader)


def _catalog_changes(
    store: Store, reader: TreeReader, catalog: SnapshotCatalog, root: TreeEntry
) -> Iterator[Difference]:
    """Compare the view's own entries with the snapshots in whose place they are seen."""
    infos = catalog.list()
    by_sequence = {info.sequence: info for info in infos}
    by_name = {info.name.encode(): info for info in infos}
    owns = list(reader.entries(tree_id_of(root)))
    stood_in = {own.slot for own in owns if own.slot < CATALOG_SLOTS_START}
    for own in owns:
        info = by_sequence.get(own.slot)
        if own.is_whiteout:
            if info is not None:  # one of a snapshot that is gone hides nothing
                yield Difference(Kind.REMOVED, own.name, snapshot_entry(info), None)
            continue
        if info is None:  # something else that has the name of a snapshot hides it
            named = by_name.get(own.name)
            info = named if named is not None and named.sequence not in stood_in else None
        scope = own if own.is_directory and keeps_links(own) else root
        if info is None:
            yield from _added(reader, scope, own)
            continue
        yield from compare(store, info.root, Side(scope, own), reader=reader, path=own.name)


def _added(reader: TreeReader, scope: TreeEntry, own: TreeEntry) -> Iterator[Difference]:
    """Yield an entry that the view made in a catalogue's root, and all below it."""
    yield Difference(Kind.ADDED, own.name, None, reader.resolve(scope, own))
    if own.is_directory:
        for path, entry in entries_below(reader, own):
            below = own.name + b"/" + path
            yield Difference(Kind.ADDED, below, None, reader.resolve(scope, entry))
