"""Snapshots that somebody has entered through a view of the catalogue, and what they were then.

Another process may remove one, and its row is gone; what is open in it is still found by its
number, also by the next daemon: the ledger keeps this. Knows no catalogue, and not what is held
back from gc.
"""

from dedupfs.format.tree import decode_tree_page, encode_tree_page
from dedupfs.model import TreeEntry
from dedupfs.namespace.ledger import Ledger


class EnteredSnapshots:
    """The entries of snapshots as they were when they were entered first."""

    def __init__(self) -> None:
        self._entries: dict[int, TreeEntry] = {}
        self._ledger: Ledger | None = None

    def keep_in(self, ledger: Ledger) -> None:
        """Take over what a daemon before this one has noted there, and note there what comes."""
        came, self._entries = self._entries, {}
        for noted in ledger.entered():
            self._entries.update((entry.slot, entry) for entry in decode_tree_page(noted))
        self._ledger = ledger
        for entry in came.values():
            self.add(entry)

    def add(self, entry: TreeEntry) -> None:
        """Keep the entry of a snapshot; its slot is the sequence number."""
        if entry.slot in self._entries:
            return
        self._entries[entry.slot] = entry
        if self._ledger is not None:
            self._ledger.note_entered(encode_tree_page([entry]))

    def find(self, sequence: int) -> TreeEntry | None:
        """Return the entry of a snapshot that may be gone; None: nobody has entered it."""
        return self._entries.get(sequence)
