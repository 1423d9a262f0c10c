"""How much space what takes: sums for the whole store, and what only some snapshots hold.

Answers from the index alone; reads no payload but what it needs to follow references. Knows no
way to change anything.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.format.keys import decode_free, decode_pack_key, decode_pack_row, unpack_record_row
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.maintenance.forecast import Forecast
from dedupfs.maintenance.release import Exclusive
from dedupfs.model import PackKind, RecordId, RecordKind, TreeEntry
from dedupfs.namespace.rows import decode_snapshot_row
from dedupfs.namespace.trees import TreeReader, links_id_of, tree_id_of
from dedupfs.store import ReadTxn, Store, Table

_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's blocks are (inode(7))


@dataclass(slots=True)
class StoreUsage:
    """Sums over a store; all sizes in bytes.

    ``logical_bytes``: of all files of all snapshots, each counted wherever it is seen.
    ``chunk_logical_bytes`` / ``chunk_stored_bytes``: of each live chunk once, before and after its
    codec. ``metadata_stored_bytes``: live records that are no chunks. ``header_bytes``: in front of
    all live records. ``garbage_bytes``: what gc would free now. ``hole_bytes``: freed and given
    back. ``index_bytes`` and ``disk_bytes`` are blocks that the file system has given out.
    """

    snapshots: int = 0
    views: int = 0
    logical_bytes: int = 0
    entries: int = 0
    chunks: int = 0
    chunk_logical_bytes: int = 0
    chunk_stored_bytes: int = 0
    metadata_records: int = 0
    metadata_stored_bytes: int = 0
    header_bytes: int = 0
    garbage_records: int = 0
    garbage_bytes: int = 0
    hole_bytes: int = 0
    packs: int = 0
    index_bytes: int = 0
    disk_bytes: int = 0
    files: int = 0
    directories: int = 0
    packs_by_kind: dict[str, int] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """Everything that live records take in packs."""
        return self.chunk_stored_bytes + self.metadata_stored_bytes + self.header_bytes

    @property
    def ratio(self) -> float:
        """Logical bytes for each byte that the store takes on disk; 0 for an empty store."""
        return self.logical_bytes / self.disk_bytes if self.disk_bytes else 0.0


@dataclass(slots=True)
class DiskUsage:
    """What the file system has given out below a directory."""

    disk_bytes: int = 0
    files: int = 0
    directories: int = 0


def disk_usage(path: Path) -> DiskUsage:
    """Add up the blocks of everything below ``path``, itself included; a file linked twice once."""
    usage = DiskUsage()
    seen: set[tuple[int, int]] = set()
    pending = [path]
    while pending:
        directory = pending.pop()
        try:
            usage.disk_bytes += os.lstat(directory).st_blocks * _BLOCK_BYTES
            entries = list(os.scandir(directory))
        except FileNotFoundError:
            continue  # removed by another process since its name was read
        usage.directories += 1
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
                continue
            try:
                stat = os.lstat(entry.path)
            except FileNotFoundError:
                continue
            usage.files += 1
            if (stat.st_dev, stat.st_ino) not in seen:
                usage.disk_bytes += stat.st_blocks * _BLOCK_BYTES
            if stat.st_nlink > 1:
                seen.add((stat.st_dev, stat.st_ino))
    return usage


def store_usage(store: Store) -> StoreUsage:
    """Return the sums of a store, as of one moment of its index."""
    usage = StoreUsage()
    with store.reading() as txn:
        _add_snapshots(store, txn, usage)
        usage.views = txn.count(Table.VIEWS)
        forecast = Forecast(store, txn)
        garbage = forecast.garbage
        usage.garbage_records = garbage.records
        usage.garbage_bytes = garbage.stored_bytes
        _add_records(txn, forecast.garbage_records, usage)
        for key, row in txn.scan(Table.FREE):
            _pack, start, stop, punched = decode_free(key, row)
            if punched:
                usage.hole_bytes += stop - start
            else:
                usage.garbage_bytes += stop - start
    index = disk_usage(store.path / "index")
    everything = disk_usage(store.path)
    usage.index_bytes = index.disk_bytes
    usage.disk_bytes = everything.disk_bytes
    usage.files = everything.files
    usage.directories = everything.directories
    return usage


def _add_snapshots(store: Store, txn: ReadTxn, usage: StoreUsage) -> None:
    trees = TreeReader(store)
    linked_bytes: dict[RecordId, int] = {}
    for _, row in txn.scan(Table.SNAPSHOTS):
        root = decode_snapshot_row(row)[0].root
        usage.snapshots += 1
        usage.entries += root.count
        links_id = links_id_of(root)
        if links_id is None:
            usage.logical_bytes += root.size
            continue
        # A root may or may not count its hard-linked files already, so all is added up here.
        if links_id not in linked_bytes:
            linked_bytes[links_id] = sum(
                inode.size for inode in trees.entries(links_id) if inode.is_file
            )
        usage.logical_bytes += linked_bytes[links_id]
        usage.logical_bytes += _sum_of_sizes(trees.entries(tree_id_of(root)))


def _sum_of_sizes(entries: Iterable[TreeEntry]) -> int:
    """Add up the bytes of files and of all below directories, hard-linked files apart."""
    return sum(
        entry.size
        for entry in entries
        if entry.is_directory or (entry.is_file and not entry.is_link)
    )


def _add_records(txn: ReadTxn, garbage: set[RecordId], usage: StoreUsage) -> None:
    header_bytes = {}
    for key, row in txn.scan(Table.PACKS):
        kind = decode_pack_row(row).kind
        usage.packs += 1
        usage.packs_by_kind[kind.name.lower()] = usage.packs_by_kind.get(kind.name.lower(), 0) + 1
        header_bytes[decode_pack_key(key)] = HEADER_BYTES if kind is PackKind.RECORDS else 0
    chunk = int(RecordKind.CHUNK)
    for key, row in txn.scan(Table.RECORDS):
        if key in garbage:
            continue
        kind_number, _codec, _salt, pack, _offset, stored, logical, _refs = unpack_record_row(row)
        usage.header_bytes += header_bytes.get(pack, 0)
        if kind_number == chunk:
            usage.chunks += 1
            usage.chunk_logical_bytes += logical
            usage.chunk_stored_bytes += stored
        else:
            usage.metadata_records += 1
            usage.metadata_stored_bytes += stored


def exclusive_bytes(store: Store, names: Iterable[str], views: Iterable[str] = ()) -> Exclusive:
    """Return exactly what removing these snapshots and views together, and gc, would free.

    On top of what gc would free anyway.

    Raises:
        NotFoundError: one does not exist. CorruptError: its row is damaged.
    """
    with store.reading() as txn:
        return Forecast(store, txn).exclusive(names, views)
