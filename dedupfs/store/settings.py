"""The copy of dedupfs.json that the index keeps, in case the file is lost.

Source: docs/format.md, "Index".
"""

from dedupfs.format.keys import META_CONFIG
from dedupfs.model import StoreConfig
from dedupfs.store.db import Database, Table
from dedupfs.store.layout import decode_config, encode_config


def save_config(db: Database, config: StoreConfig) -> None:
    """Keep a copy of dedupfs.json in the index: without its seed nothing could be read."""
    with db.writing() as txn:
        txn.put(Table.META, META_CONFIG, encode_config(config))


def saved_config(db: Database) -> StoreConfig | None:
    """Return the copy of dedupfs.json in the index, or None; errors as ``read_config``."""
    with db.reading() as txn:
        text = txn.get(Table.META, META_CONFIG)
    return decode_config(text, db.data_path) if text is not None else None
