"""How much space what takes: sums for the whole store, and what only some snapshots hold.

Answers from the index alone; reads no payload but what it needs to follow references. Knows no
way to change anything.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dedupfs.errors import StoreError
from dedupfs.format.keys import decode_free, decode_pack_key, decode_pack_row, unpack_record_row
from dedupfs.format.pack import HEADER_BYTES
from dedupfs.maintenance.blocks import BLOCK_UNIT_BYTES
from dedupfs.maintenance.forecast import Forecast
from dedupfs.maintenance.release import Exclusive
from dedupfs.model import PackKind, RecordId, RecordKind, TreeEntry
from dedupfs.namespace.trees import TreeReader, links_id_of
from dedupfs.store import ReadTxn, Store, Table


@dataclass(slots=True)
class StoreUsage:
    """Sums over a store; all sizes in bytes.

    ``logical_bytes``: of all files of all snapshots, each counted wherever it is seen, and
    ``entries`` the names below their roots; ``view_logical_bytes``, ``view_entries``: the same of
    views, as of their last folds. ``plain_inodes``: what copies of all of them would take.
    ``chunk_logical_bytes`` / ``chunk_stored_bytes``: of each live chunk once, before and after its
    codec. ``metadata_stored_bytes``: live records that are no chunks. ``header_bytes``: in front of
    all live records. ``garbage_bytes``: freed records and ranges that gc would deal with now, and
    ``garbage_disk_bytes`` what the disk would get back for it. ``hole_bytes``: freed and given
    back. ``index_bytes``, ``view_file_bytes`` (journals and staging files) and ``disk_bytes`` are
    blocks that the file system has given out. ``problems``: what is damaged and not counted.
    """

    snapshots: int = 0
    views: int = 0
    logical_bytes: int = 0
    view_logical_bytes: int = 0
    entries: int = 0
    view_entries: int = 0
    plain_inodes: int = 0
    chunks: int = 0
    chunk_logical_bytes: int = 0
    chunk_stored_bytes: int = 0
    metadata_records: int = 0
    metadata_stored_bytes: int = 0
    header_bytes: int = 0
    garbage_records: int = 0
    garbage_bytes: int = 0
    garbage_disk_bytes: int = 0
    hole_bytes: int = 0
    packs: int = 0
    index_bytes: int = 0
    view_file_bytes: int = 0
    disk_bytes: int = 0
    files: int = 0
    directories: int = 0
    packs_by_kind: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def stored_bytes(self) -> int:
        """Everything that live records take in packs."""
        return self.chunk_stored_bytes + self.metadata_stored_bytes + self.header_bytes

    @property
    def copies_bytes(self) -> int:
        """What the files of all snapshots and views are as they read."""
        return self.logical_bytes + self.view_logical_bytes

    @property
    def saved_by_codec_bytes(self) -> int:
        """How much smaller compression has made the chunks."""
        return self.chunk_logical_bytes - self.chunk_stored_bytes

    @property
    def dedup_ratio(self) -> float:
        """Logical bytes for each byte of distinct chunks; 0 for an empty store."""
        unique_bytes = self.chunk_logical_bytes
        return self.copies_bytes / unique_bytes if unique_bytes else 0.0

    @property
    def inodes(self) -> int:
        """Inodes of the file system that the store takes."""
        return self.files + self.directories

    @property
    def ratio(self) -> float:
        """Logical bytes for each byte that the store takes on disk; 0 for an empty store."""
        return self.copies_bytes / self.disk_bytes if self.disk_bytes else 0.0


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
            usage.disk_bytes += os.lstat(directory).st_blocks * BLOCK_UNIT_BYTES
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
                usage.disk_bytes += stat.st_blocks * BLOCK_UNIT_BYTES
            if stat.st_nlink > 1:
                seen.add((stat.st_dev, stat.st_ino))
    return usage


def store_usage(store: Store) -> StoreUsage:
    """Return the sums of a store, as of one moment of its index.

    Costs a look at each row of the index, and the decoding of what holds hard links.
    """
    usage = StoreUsage()
    with store.reading() as txn:
        forecast = Forecast(store, txn)
        _add_roots(store, forecast, usage)
        garbage = forecast.garbage
        usage.garbage_records = garbage.records
        usage.garbage_bytes = garbage.stored_bytes
        usage.garbage_disk_bytes = garbage.disk_bytes
        _add_records(txn, forecast.garbage_records, usage)
        for key, row in txn.scan(Table.FREE):
            _pack, start, stop, punched = decode_free(key, row)
            if punched:
                usage.hole_bytes += stop - start
            else:
                usage.garbage_bytes += stop - start
        usage.problems = (*forecast.damaged, *garbage.problems)
    index = disk_usage(store.path / "index")
    everything = disk_usage(store.path)
    usage.index_bytes = index.disk_bytes
    usage.disk_bytes = everything.disk_bytes
    usage.files = everything.files
    usage.directories = everything.directories
    return usage


def _add_roots(store: Store, forecast: Forecast, usage: StoreUsage) -> None:
    reader = TreeReader(store)
    for name in forecast.snapshots():
        info, _ = forecast.snapshot(name)
        usage.snapshots += 1
        usage.logical_bytes += forecast.logical_bytes(info)
        usage.entries += info.root.count
        usage.plain_inodes += _plain_inodes(reader, info.root)
    for name in forecast.views():
        view = forecast.view(name)
        usage.views += 1
        usage.view_file_bytes += forecast.view_file_bytes(name)
        root = forecast.view_root(view)
        if root is not None:
            usage.view_logical_bytes += forecast.view_logical_bytes(view)
            usage.view_entries += root.count
            usage.plain_inodes += _plain_inodes(reader, root)


def _plain_inodes(reader: TreeReader, root: TreeEntry) -> int:
    """Return the inodes of a copy: a hard-linked file is one with many names."""
    links_id = links_id_of(root)
    extra_names = 0
    if links_id is not None:
        with suppress(StoreError):  # told of by ``logical_bytes``
            extra_names = sum(max(0, inode.nlink - 1) for inode in reader.entries(links_id))
    return 1 + root.count - extra_names


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
