"""Journaling: what a request changes is written down first, and so that it can be read by itself.

Names and attributes are edits, applied (applying.py) as soon as the journal has them, so that
replay after a crash is the same code; what changes bytes applies itself (writing.py). Before a
number is used the journal says where it belongs, and before anything below a snapshot of the
catalogue changes, that the snapshot is the view's. Source: docs/architecture.md, "Invariants".
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from dedupfs.errors import StaleError
from dedupfs.format.journal import Attributes, Edit, NameEdit, Orphan, Place, Put, Remove
from dedupfs.model import TreeEntry
from dedupfs.namespace.applying import apply
from dedupfs.namespace.directory import CATALOG_SLOTS_START, CatalogDirectory, Directory
from dedupfs.namespace.inodes import (
    ROOT_INODE,
    ROOT_NUMBER,
    SLOT_BITS,
    directory_inode,
    is_directory_inode,
)
from dedupfs.namespace.journal import Journal

if TYPE_CHECKING:
    from dedupfs.namespace.state import ViewState


def record(state: "ViewState", time_ns: int, edits: Sequence[NameEdit]) -> None:
    """Write edits to the journal, then apply them.

    Raises:
        StoreFullError, StoreError: the journal could not be written; nothing changed.
    """
    journal = state.journal
    if journal is not None:
        ready = journal.ready
        for edit in edits:
            if not isinstance(edit, Orphan) and edit.directory not in ready:
                _append_first(state, journal, time_ns, edits)
                break
        else:
            journal.append(time_ns, edits)
            for edit in edits:
                if type(edit) is Place:
                    journal.declared.add(edit.inode)
            state.edit_count += len(edits)
    for edit in edits:
        apply(state, edit, time_ns)


def _append_first(
    state: "ViewState", journal: Journal, time_ns: int, edits: Sequence[NameEdit]
) -> None:
    """Journal edits of which some may be the first ones in their directory."""
    changed = [edit.directory for edit in edits if isinstance(edit, Put | Remove | Attributes)]
    for number in changed:
        _materialize(state, number)
    places = [edit.directory for edit in edits if isinstance(edit, Place)]
    _append(state, time_ns, [*changed, *places], (), edits)
    journal.ready.update(changed)


def _materialize(state: "ViewState", number: int) -> None:
    """Before anything below changes, make the snapshot above directory ``number`` the view's.

    Its trees are held back and the journal says what it was, since another process may rename
    or remove the snapshot before the next fold.

    Raises:
        StaleError: it was removed, and another object has its name. StoreFullError, StoreError.
    """
    if number in state.owned or not isinstance(state.root, CatalogDirectory):
        return
    top = state.directory(directory_inode(number))
    path = {number}
    while top.parent is not None and top.parent is not state.root:
        top = top.parent
        if top.number in state.owned:  # and so is all that is below it
            state.owned |= path
            return
        path.add(top.number)
    if top is not state.root:
        slot = state.inodes.home_of(top.inode)[1]
        if slot < CATALOG_SLOTS_START and not state.root.stands_in(slot):
            _take_over(state, top, slot)
    state.owned |= path


def _take_over(state: "ViewState", top: Directory, slot: int) -> None:
    entry = state.root.by_slot(slot)  # it may have another name than when it was first seen
    if entry is None:
        entry = msgspec.structs.replace(top.entry, slot=slot)
        if state.root.find(entry.name) is not None:
            raise StaleError(f"snapshot {entry.name!r} was removed by another process")
    state.hold(entry)
    unchanged_ns = state.root.entry.mtime_ns  # nothing came or went
    _append(state, unchanged_ns, (top.number,), (), [Put(ROOT_NUMBER, entry)])
    state.root.put(entry)
    top.entry = msgspec.structs.replace(top.entry, name=entry.name)


def append_file(state: "ViewState", inode: int, edits: Sequence[Edit], time_ns: int) -> None:
    """Journal what happened to a file's bytes; SIGKILL cannot lose it afterwards."""
    if state.journal is None:
        return
    file = state.files.get(inode)
    if file is not None and file.orphan:  # for a daemon that takes over; no place to declare
        _append(state, time_ns, (), (), edits)
        return
    holder, entry = state.locate(inode)
    number = holder.number
    if number << SLOT_BITS | entry.slot == inode and number in state.journal.ready:
        state.journal.append(time_ns, edits)
        state.edit_count += len(edits)
        return
    _materialize(state, number)
    _append(state, time_ns, (), (inode,), edits)
    state.journal.ready.add(number)


def append_orphan(state: "ViewState", inode: int, entry: TreeEntry | None, time_ns: int) -> None:
    """Journal what an inode without a name is now; None: a directory that nobody is in."""
    if state.journal is not None:
        _append(state, time_ns, (), (), [Orphan(inode, entry)])


def _append(
    state: "ViewState",
    time_ns: int,
    numbers: Iterable[int],
    inodes: Iterable[int],
    edits: Sequence[Edit],
) -> None:
    assert state.journal is not None
    declared = state.journal.declared
    fresh: list[Edit] = []
    given = {edit.inode for edit in edits if isinstance(edit, Place)}
    for number in numbers:
        _declare(state, directory_inode(number), fresh, given)
    for inode in inodes:
        _declare(state, inode, fresh, given)
    state.journal.append(time_ns, [*fresh, *edits])
    declared.update(edit.inode for edit in (*fresh, *edits) if isinstance(edit, Place))
    state.edit_count += len(edits)


def _declare(state: "ViewState", inode: int, fresh: list[Edit], given: set[int]) -> None:
    """Add the places that lead from the root to ``inode``, as far as not in the journal yet.

    Not by recursion: it may lie deeper than Python's stack.
    """
    assert state.journal is not None
    way: list[Edit] = []
    while not (inode == ROOT_INODE or inode in given or inode in state.journal.declared):
        number, slot = state.inodes.home_of(inode)
        if is_directory_inode(inode) or number << SLOT_BITS | slot != inode:
            way.append(Place(inode, number, slot))
            given.add(inode)
        inode = directory_inode(number)
    fresh += reversed(way)
