"""Inode numbers: who has which, and where it is found again after a restart.

A directory gets a number of its own when it is first seen. Anything else is ``directory number <<
24 | slot``, needing neither a row nor an object, unless it was moved to another directory: then it
takes its number along. So two small tables say it all: PLACES (view, directory, slot) -> inode
and HOMES (view, inode) -> directory, slot. Knows no names and no trees.
"""

from dedupfs.errors import StaleError
from dedupfs.namespace.rows import (
    decode_home,
    decode_inode,
    encode_home,
    encode_inode,
    home_key,
    place_key,
    place_prefix,
    slot_of_place_key,
)
from dedupfs.store.store import Store, Table, Transaction

ROOT_INODE = 1
ROOT_NUMBER = 1
SLOT_BITS = 24
SLOT_MAX = (1 << SLOT_BITS) - 2
LINKS_SLOT = (1 << SLOT_BITS) - 1
"""The slot, in the root of a scope, of the hidden directory that holds its hard-linked inodes."""

Home = tuple[int, int]


def directory_inode(number: int) -> int:
    """Return the inode number of directory ``number``."""
    return ROOT_INODE if number == ROOT_NUMBER else number << SLOT_BITS


def is_directory_inode(inode: int) -> bool:
    """Whether ``inode`` was given out for a directory (or for something numbered like one)."""
    return inode == ROOT_INODE or inode & LINKS_SLOT == 0


def directory_number(inode: int) -> int:
    """Return the number of the directory that ``inode`` is, or in which it was first seen."""
    return ROOT_NUMBER if inode == ROOT_INODE else inode >> SLOT_BITS


class InodeTable:
    """The numbers of one view: rows in the index, and what came since the last fold in memory."""

    def __init__(self, store: Store, view_id: int | None, next_number: int) -> None:
        """``view_id`` None: nothing is kept (a read-only mount)."""
        self._store = store
        self._view_id = view_id
        self.next_number = next_number
        self._rows_stop = next_number
        """No number from here on has been through a fold, so none of them has a row."""
        self._places: dict[int, dict[int, int | None]] = {}  # directory -> slot -> inode
        self._homes: dict[int, Home | None] = {}

    def new_number(self) -> int:
        """Return a directory number that was never given before."""
        number = self.next_number
        self.next_number += 1
        return number

    def places_of(self, directory: int) -> dict[int, int]:
        """Return slot -> inode of all in ``directory`` whose number is not the natural one."""
        found: dict[int, int] = {}
        if self._view_id is not None and directory < self._rows_stop:
            with self._store.reading() as txn:
                for key, value in txn.scan(Table.PLACES, place_prefix(self._view_id, directory)):
                    found[slot_of_place_key(key)] = decode_inode(value)
        for slot, inode in self._places.get(directory, {}).items():
            if inode is None:
                found.pop(slot, None)
            else:
                found[slot] = inode
        return found

    def home_of(self, inode: int) -> Home:
        """Return the directory and slot where ``inode`` is found.

        Raises:
            StaleError: a directory's number that was never given, or is no longer used.
        """
        home = self._homes.get(inode)
        if home is not None:
            return home
        is_gone = inode in self._homes
        if not is_gone and inode >> SLOT_BITS < self._rows_stop and self._view_id is not None:
            with self._store.reading() as txn:
                row = txn.get(Table.HOMES, home_key(self._view_id, inode))
            if row is not None:
                return decode_home(row)
        if is_gone or is_directory_inode(inode):
            raise StaleError(f"inode {inode} is gone")
        return inode >> SLOT_BITS, inode & LINKS_SLOT

    def place(self, inode: int, directory: int, slot: int) -> None:
        """Say that ``inode`` is now found in ``slot`` of ``directory``."""
        old = self._homes.get(inode)
        if old is None and inode not in self._homes:
            try:
                old = self.home_of(inode)
            except StaleError:
                old = None
        if old is not None and old != (directory, slot):
            self._places.setdefault(old[0], {})[old[1]] = None
        self._places.setdefault(directory, {})[slot] = inode
        self._homes[inode] = (directory, slot)
        self.next_number = max(self.next_number, directory_number(inode) + 1, directory + 1)

    def forget(self, inode: int) -> None:
        """Say that ``inode`` is no more; its number is not given again."""
        try:
            home = self.home_of(inode)
        except StaleError:
            return
        if home == (inode >> SLOT_BITS, inode & LINKS_SLOT):
            return  # it has no rows
        self._places.setdefault(home[0], {})[home[1]] = None
        self._homes[inode] = None

    def write(self, txn: Transaction) -> None:
        """Put what came since the last fold into the index; ``written`` follows the commit."""
        if self._view_id is None:
            return
        for directory, slots in self._places.items():
            for slot, inode in slots.items():
                key = place_key(self._view_id, directory, slot)
                if inode is None:
                    txn.delete(Table.PLACES, key)
                else:
                    txn.put(Table.PLACES, key, encode_inode(inode))
        for inode, home in self._homes.items():
            key = home_key(self._view_id, inode)
            if home is None:
                txn.delete(Table.HOMES, key)
            else:
                txn.put(Table.HOMES, key, encode_home(*home))

    def written(self) -> None:
        """Drop from memory what the index has now."""
        self._places.clear()
        self._homes.clear()
        self._rows_stop = self.next_number
