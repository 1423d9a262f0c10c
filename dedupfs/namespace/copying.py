"""Copying inside a view: a new name gets the content that another has, and no byte is read.

A file's chunks, or a directory's tree with all below it, get one more reference; what is not
settled yet is folded first. Names of hard-linked inodes become files of their own. Knows no
request. Source: docs/architecture.md, "Paths".
"""

from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from dedupfs.errors import InvalidError, MissingRecordError, StaleError
from dedupfs.format.journal import NameEdit, Place, Put
from dedupfs.model import TreeEntry
from dedupfs.namespace.directory import Directory
from dedupfs.namespace.fold import ATTEMPTS, Folder
from dedupfs.namespace.inodes import ROOT_INODE, SLOT_MAX, directory_inode
from dedupfs.namespace.journaling import record
from dedupfs.namespace.names import require_free
from dedupfs.namespace.state import ViewState
from dedupfs.namespace.trees import directory_entry, links_id_of, put_tree, tree_id_of


def copy(
    state: ViewState, folder: Folder, inode: int, parent: Directory, name: bytes, now_ns: int
) -> TreeEntry:
    """Make ``name`` in ``parent`` a copy of ``inode``, with all its attributes.

    Costs a fold when something in there has changed since the last one, and one more tree for each
    directory below which there are names of hard-linked inodes; else nothing.

    Raises:
        ExistsError, NameTooLongError, InvalidError, NotFoundError: the name or the directory.
        InvalidError: it would lie in itself. StaleError: nothing has this number.
    """
    require_free(parent, name)
    if inode == ROOT_INODE:
        raise InvalidError("a directory cannot be copied into itself")
    holder, entry = state.locate(inode)
    if entry.is_directory:
        entry = _settled_directory(state, folder, state.child(holder, entry), parent)
    else:
        entry = _settled_file(state, folder, inode, holder)
    slot = parent.new_slot()
    made = msgspec.structs.replace(entry, name=name, slot=slot, ctime_ns=now_ns)
    edits: list[NameEdit] = [Put(parent.number, made)]
    if made.is_directory or slot > SLOT_MAX:
        edits.insert(0, Place(directory_inode(state.inodes.new_number()), parent.number, slot))
    record(state, now_ns, edits)
    return made


def _settled_file(state: ViewState, folder: Folder, inode: int, holder: Directory) -> TreeEntry:
    file = state.files.get(inode)
    if file is not None and file.unsettled:
        folder.fold()
    _hold_snapshot(state, holder)
    return msgspec.structs.replace(state.named_entry(inode), nlink=1)


def _settled_directory(
    state: ViewState, folder: Folder, source: Directory, parent: Directory
) -> TreeEntry:
    if _is_within(parent, source):
        raise InvalidError("a directory cannot be copied into itself")
    if _has_changed(state, source):
        folder.fold()
    _hold_snapshot(state, source)
    entry = source.entry
    if entry.has_links or links_id_of(entry) is not None:
        return _pinned_without_links(state, folder, source.scope.entry, entry)
    return entry


def _is_within(directory: Directory | None, top: Directory) -> bool:
    while directory is not None and directory is not top:
        directory = directory.parent
    return directory is top


def _has_changed(state: ViewState, source: Directory) -> bool:
    """Whether anything in ``source`` or below is newer than its tree.

    An inode with several names may have one in there: it lies in the scope's links.
    """

    def is_ours(directory: Directory) -> bool:
        if directory.is_links:
            return directory.parent is source.scope
        return _is_within(directory, source)

    if any(d.dirty and not d.removed and is_ours(d) for d in state.directories.values()):
        return True
    for file in state.files.values():
        if file.unsettled and not file.orphan:
            with suppress(StaleError):  # of a snapshot that somebody removed
                if is_ours(state.locate(file.inode)[0]):
                    return True
    return False


def _hold_snapshot(state: ViewState, directory: Directory) -> None:
    """In a catalogue, hold back from gc what may be a snapshot's alone, until a fold refers to it.

    What is the view's own its root refers to, or it was held back when it came.
    """
    if not state.is_catalog or directory is state.root:
        return
    top = directory
    while top.parent is not None and top.parent is not state.root:
        top = top.parent
    state.hold(top.entry)


# --- hard links -----------------------------------------------------------------------------------


@dataclass
class _Rewritten:
    """A directory with names of hard-linked inodes in it or below."""

    entry: TreeEntry
    above: "_Rewritten | None"
    made: dict[bytes, TreeEntry] = field(default_factory=dict)
    """What its subdirectories, as far as they are rewritten too, have become."""


def _pinned_without_links(
    state: ViewState, folder: Folder, scope: TreeEntry, top: TreeEntry
) -> TreeEntry:
    for _ in range(ATTEMPTS):
        try:
            made = _without_links(state, scope, top)
            tree_id = tree_id_of(made)
            if tree_id is None or folder.pin_new(tree_id):
                return made
        except BaseException:
            state.store.drop_pending()
            raise
        state.store.drop_pending()  # a tree that was found was freed before it was held back
    raise MissingRecordError("the copy's trees are freed again and again: run 'dedupfs check'")


def _without_links(state: ViewState, scope: TreeEntry, top: TreeEntry) -> TreeEntry:
    """Put the trees of ``top`` in which each name has a file of its own; return their entry."""
    trees = state.trees
    found = [_Rewritten(top, None)]
    for one in found:  # not by recursion: they may lie deeper than Python's stack
        found += [
            _Rewritten(child, one)
            for child in trees.entries(tree_id_of(one.entry))
            if child.is_directory and child.has_links
        ]
    entry = top
    for one in reversed(found):  # what lies below comes first
        tree_id = tree_id_of(one.entry)
        children = [
            one.made.get(child.name) or _own(state, scope, child)
            for child in trees.entries(tree_id)
        ]
        next_slot = trees.get(tree_id).next_slot if tree_id is not None else 1
        old = one.entry
        entry = directory_entry(
            old.name,
            old.slot,
            children,
            put_tree(state.store, children, next_slot) if tree_id is not None else None,
            mode=old.mode,
            uid=old.uid,
            gid=old.gid,
            mtime_ns=old.mtime_ns,
            xattrs=old.xattrs,
            ctime_ns=old.ctime_ns,
            atime_ns=old.atime_ns,
        )
        if one.above is not None:
            one.above.made[entry.name] = entry
    return entry


def _own(state: ViewState, scope: TreeEntry, child: TreeEntry) -> TreeEntry:
    if not child.is_link:
        return child
    return msgspec.structs.replace(state.trees.resolve(scope, child), nlink=1)
