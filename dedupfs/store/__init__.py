"""Records and packs on disk, and the index over them; knows no names and no inodes.

``Store`` (store.py) is the way in. Source: docs/format.md; docs/architecture.md, "Paths".
"""

from dedupfs.store.db import ReadTxn, Table
from dedupfs.store.disk import Disk
from dedupfs.store.realdisk import RealDisk
from dedupfs.store.store import Store
from dedupfs.store.transaction import Transaction

__all__ = ["Disk", "ReadTxn", "RealDisk", "Store", "Table", "Transaction"]
