"""Freezing: the entry of a directory of a folded view, as the root that a snapshot can have.

It must stand for itself: all names of the hard-linked inodes that it has are inside. Changes
nothing of the view; knows no catalogue. Source: docs/format.md, "Payloads".
"""

import os

import msgspec

from dedupfs.errors import NotADirectoryNameError, NotFoundError, UsageError
from dedupfs.model import TreeEntry
from dedupfs.namespace.directory import CatalogDirectory, Directory
from dedupfs.namespace.state import ViewState
from dedupfs.namespace.trees import directory_entry, links_id_of, put_tree, tree_id_of


def freeze(state: ViewState, path: bytes) -> TreeEntry:
    """Return the root of a snapshot of the directory at ``path``; what it needs is put (pending).

    Raises:
        NotFoundError, NotADirectoryNameError: the path. UsageError: a changed snapshot has links.
    """
    directory = state.root
    for name in [part for part in path.split(b"/") if part and part != b"."]:
        entry = directory.find(name)
        if entry is None:
            raise NotFoundError(f"no {os.fsdecode(path)!r} in view {state.view_name!r}")
        if not entry.is_directory:
            raise NotADirectoryNameError(
                f"{os.fsdecode(path)!r} in view {state.view_name!r} is no directory"
            )
        directory = state.child(directory, entry)
    if isinstance(directory, CatalogDirectory):
        return _freeze_catalog(state, directory)
    if directory.is_scope or not directory.entry.has_links:
        return directory.entry
    return _freeze_links(state, directory)


def _freeze_catalog(state: ViewState, root: CatalogDirectory) -> TreeEntry:
    """Freeze what the view itself wrote in a catalogue's root."""
    entries = [entry for entry in root.own_entries() if not entry.is_whiteout]
    if any(links_id_of(entry) is not None for entry in entries if entry.is_directory):
        raise UsageError(
            "a snapshot with hard links was changed in this view: commit its directories "
            "one by one (--path)"
        )
    links_id = links_id_of(root.entry)
    tree_id = put_tree(state.store, entries, root.next_slot) if entries else None
    old = root.entry
    made = directory_entry(
        b"",
        0,
        entries,
        tree_id,
        mode=old.mode,
        uid=old.uid,
        gid=old.gid,
        mtime_ns=old.mtime_ns,
        xattrs=old.xattrs,
        links_id=links_id if tree_id is not None else None,
    )
    linked_bytes = sum(entry.size for entry in state.trees.entries(links_id))
    return msgspec.structs.replace(made, size=made.size + linked_bytes)


def _freeze_links(state: ViewState, directory: Directory) -> TreeEntry:
    """Give a directory inside a scope a links tree of its own, counting the names inside."""
    trees = state.trees
    counts: dict[bytes, int] = {}
    waiting = [directory.entry]
    while waiting:
        for entry in trees.entries(tree_id_of(waiting.pop())):
            if entry.is_link:
                counts[entry.content] = counts.get(entry.content, 0) + 1
            elif entry.is_directory and entry.has_links:
                waiting.append(entry)
    links = state.links(directory.scope)
    entries = []
    for link_id in sorted(counts):
        found = links.find(link_id)
        assert found is not None, "a link that fold has just written"
        entries.append(msgspec.structs.replace(found, nlink=counts[link_id]))
    links_id = put_tree(state.store, entries, links.next_slot)
    old = directory.entry
    return msgspec.structs.replace(
        old,
        content=old.content + links_id,
        size=old.size + sum(entry.size for entry in entries),
    )
