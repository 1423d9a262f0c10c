"""Making a store's directory, and opening what is in it. Knows no record.

Source: docs/format.md, "Layout".
"""

from contextlib import suppress

from dedupfs.errors import StoreError
from dedupfs.model import StoreConfig
from dedupfs.store.db import Database
from dedupfs.store.disk import Disk
from dedupfs.store.layout import Layout, make_directories, write_config
from dedupfs.store.settings import save_config


def make_store(layout: Layout, disk: Disk, config: StoreConfig) -> Database:
    """Make an empty store, of which dedupfs.json is the last; return its index.

    Raises:
        UsageError: the path is a file, a store, or a directory that holds something else.
    """
    make_directories(layout, disk)
    db = Database(layout.index, create=True)
    try:
        disk.fsync_dir(layout.index)
        save_config(db, config)
        write_config(layout, disk, config)
    except BaseException:
        db.close()
        raise
    return db


def open_index(layout: Layout, disk: Disk, *, create: bool) -> Database:
    """Open the index of a store; ``create``: make a missing one anew, empty.

    Raises:
        StoreError: it is missing.
    """
    if create:
        disk.mkdir(layout.index)
        disk.mkdir(layout.run)
    elif "data.mdb" not in disk.listdir(layout.index):
        raise StoreError(f"{layout.root} has no index; run: dedupfs reindex {layout.root}")
    elif not layout.run.is_dir():  # a copy may be without it, since nothing in it lasts
        with suppress(StoreError):  # it is there to be read alone
            disk.mkdir(layout.run)
    return Database(layout.index, create=create)
