"""Applying edits to a view in memory: the same code for a request and for replay after a crash.

Knows names, attributes and numbers; bytes of files are openfile.py's and replay.py's. What an edit
means: format/journal.py.
"""

from typing import TYPE_CHECKING

import msgspec

from dedupfs.errors import StaleError
from dedupfs.format.journal import Attributes, Edit, Place, Put, Remove
from dedupfs.model import ID_BYTES, TreeEntry
from dedupfs.namespace.directory import CatalogDirectory, Directory, keeps_links
from dedupfs.namespace.inodes import SLOT_BITS, directory_inode, directory_number
from dedupfs.namespace.trees import tree_id_of

if TYPE_CHECKING:
    from dedupfs.namespace.state import ViewState


def apply(state: "ViewState", edit: Edit, time_ns: int) -> None:
    """Apply one edit of names, attributes or numbers to what is in memory."""
    if isinstance(edit, Put):
        _apply_put(state, _directory(state, edit.directory), edit.entry, time_ns)
    elif isinstance(edit, Remove):
        directory = _directory(state, edit.directory)
        old = directory.find(edit.name)
        directory.remove(edit.name, edit.hide)
        if not directory.is_links:
            directory.touch(time_ns)
            if old is not None and old.is_directory:
                directory.add_subdirectories(-1)
    elif isinstance(edit, Place):
        _apply_place(state, edit)
    elif isinstance(edit, Attributes):
        _directory(state, edit.directory).set_attributes(edit.entry)


def _directory(state: "ViewState", number: int) -> Directory:
    return state.directories.get(number) or state.directory(directory_inode(number))


def _apply_place(state: "ViewState", edit: Place) -> None:
    try:
        old_number, old_slot = state.inodes.home_of(edit.inode)
    except StaleError:
        pass
    else:
        old = state.directories.get(old_number)
        if old is not None and old.places.get(old_slot) == edit.inode:
            del old.places[old_slot]
    state.inodes.place(edit.inode, edit.directory, edit.slot)
    holder = state.directories.get(edit.directory)
    if holder is not None:
        holder.places[edit.slot] = edit.inode


def _apply_put(state: "ViewState", holder: Directory, entry: TreeEntry, time_ns: int) -> None:
    old = holder.find(entry.name)
    holder.put(entry)
    if (old is None or old.slot != entry.slot or old.mode != entry.mode) and not holder.is_links:
        if old is None or old.slot != entry.slot:
            holder.touch(time_ns)
        were = old is not None and old.is_directory
        if entry.is_directory != were:
            holder.add_subdirectories(1 if entry.is_directory else -1)
    inode = holder.places.get(entry.slot)
    if entry.is_directory:
        moved = state.directories.get(directory_number(inode)) if inode is not None else None
        if moved is not None and moved is not holder:
            _adopt_directory(state, holder, moved, entry)
        return
    if entry.is_link:
        return
    file = state.files.get(inode if inode is not None else holder.number << SLOT_BITS | entry.slot)
    if file is not None:
        file.entry = msgspec.structs.replace(
            entry,
            content=file.entry.content,
            size=file.entry.size,
            hole_bytes=file.entry.hole_bytes,
        )
        file.mtime_ns, file.ctime_ns = entry.mtime_ns, entry.ctime_ns


def _adopt_directory(
    state: "ViewState", holder: Directory, moved: Directory, entry: TreeEntry
) -> None:
    """A directory that is in memory got another name, another parent or, unused, another tree.

    It stays a scope exactly when ``child`` would find it one, or its new links make it one.
    """
    moved.is_scope = isinstance(holder, CatalogDirectory) and (
        keeps_links(entry) or (moved.is_scope and state.has_links(moved))
    )
    moved.parent = holder
    if tree_id_of(entry) != tree_id_of(moved.entry):  # no fold lies between: it became a clone
        moved.become(entry)
        return
    content = moved.entry.content if moved.is_scope else moved.entry.content[:ID_BYTES]
    moved.entry = msgspec.structs.replace(entry, content=content, nlink=moved.entry.nlink)
