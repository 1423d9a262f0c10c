"""What dead processes left in a store's directory: files that no row of the index knows.

Source: docs/format.md, "Write order" and "Views".
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from dedupfs.errors import CorruptError, StoreError, UsageError
from dedupfs.format.keys import (
    META_COUNTER,
    META_MAKING,
    decode_count,
    decode_location,
    encode_pack_key,
)
from dedupfs.namespace.rows import check_name
from dedupfs.namespace.views import (
    VIEWS_DIRECTORY,
    delete_view,
    find_view,
    lock_view,
    remove_dead_ephemeral,
    why_kept,
)
from dedupfs.store import ReadTxn, Store, Table
from dedupfs.store.inventory import pack_files
from dedupfs.store.openpack import PACK_COUNTER, is_committed
from dedupfs.store.owner import close_lock, open_lock

log = logging.getLogger(__name__)

_IMPORT_NAME = re.compile(r"import-.*\.new")


def remove_leftovers(store: Store) -> int:
    """Remove files that no row of the index and no live process knows; return how many."""
    removed = _remove_lost_packs(store) + _remove_import_files(store)
    return removed + len(remove_dead_ephemeral(store)) + _remove_lost_views(store)


def _remove_lost_packs(store: Store) -> int:
    """Remove pack files without a row.

    The write transaction keeps every process from giving out pack numbers meanwhile, and a pack
    in the making has a row of META (or its maker's lock).
    """
    with store.reading() as txn:
        lost = dict(_lost_packs(store, txn))
        if not lost:
            return 0
        _require_unused_packs(store, txn, lost)
    removed = 0
    with store.transaction() as changes:
        for pack, path in list(_lost_packs(store, changes)):
            if pack in lost:
                removed += _remove_unlocked(store, path)
    return removed


def _require_unused_packs(store: Store, txn: ReadTxn, lost: dict[int, Path]) -> None:
    """Refuse to remove packs that the index would know if it were whole.

    Raises:
        CorruptError: it was never told of their numbers, or has records in them.
    """
    row = txn.get(Table.META, META_COUNTER + PACK_COUNTER.encode())
    counter = decode_count(row) if row is not None else 0
    used = any(pack > counter and is_committed(path) for pack, path in lost.items())
    used = used or any(decode_location(row)[0].pack in lost for _, row in txn.scan(Table.RECORDS))
    if used:
        raise CorruptError(
            f"{store.path}: the index does not know packs that hold data; run dedupfs reindex"
        )


def _lost_packs(store: Store, txn: ReadTxn) -> Iterator[tuple[int, Path]]:
    for pack, _kind, path in pack_files(store):
        key = encode_pack_key(pack)
        known = txn.get(Table.PACKS, key) is not None
        if not known and txn.get(Table.META, META_MAKING + key) is None:
            yield pack, path


def _remove_import_files(store: Store) -> int:
    removed = 0
    for name in store.disk.listdir(store.layout.run):
        if _IMPORT_NAME.fullmatch(name):
            removed += _remove_unlocked(store, store.layout.run / name)
    return removed


def _remove_unlocked(store: Store, path: Path) -> bool:
    """Remove a file unless its owner still holds its lock."""
    try:
        file = open_lock(store.disk, path)
    except FileNotFoundError:
        return False
    try:
        if not store.disk.lock(file):
            return False
        store.disk.unlink(path)
    finally:
        close_lock(file)
    log.info("leftover removed path=%s", path)
    return True


def _remove_lost_views(store: Store) -> int:
    """Remove the files of views that have no row: a removal or a making was cut short.

    Those of a view whose row a damaged index has lost stay, for reindex.
    """
    removed = 0
    for name in store.disk.listdir(store.path / VIEWS_DIRECTORY):
        try:
            check_name(name, "view")
            if find_view(store, name) is not None:
                continue
            lock = lock_view(store.disk, store.path, name, "")
        except (UsageError, StoreError):
            continue  # not a view's directory, or somebody is just making it
        try:
            if find_view(store, name) is not None:
                continue
            why = why_kept(store, name)
            if why:
                log.warning(
                    "files of a view without a row stay view=%s: %s; 'dedupfs reindex %s' brings "
                    "it back",
                    name,
                    why,
                    store.path,
                )
            else:
                delete_view(store, name)
                log.info("leftover removed view=%s", name)
                removed += 1
        finally:
            lock.release()
    return removed
