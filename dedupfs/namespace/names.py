"""Names in a view: making, linking, removing and renaming them, as POSIX has it.

Each function checks first, then records its edits, so a refused request changes nothing. Knows
neither handles nor bytes of files.
"""

import stat
import struct
from contextlib import suppress

import msgspec

from dedupfs.errors import (
    CrossScopeError,
    ExistsError,
    InvalidError,
    IsADirectoryNameError,
    NameTooLongError,
    NotADirectoryNameError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
    StoreError,
    TooManyLinksError,
)
from dedupfs.format.journal import NameEdit, Orphan, Place, Put, Remove
from dedupfs.model import ID_BYTES, LINK_MODE, NAME_BYTES_MAX, TreeEntry
from dedupfs.namespace import acl
from dedupfs.namespace.directory import CatalogDirectory, Directory
from dedupfs.namespace.inodes import SLOT_MAX, directory_inode, directory_number
from dedupfs.namespace.journaling import append_orphan, record
from dedupfs.namespace.state import ViewState

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
LINKS_MAX = 65_000
_LINK_ID = struct.Struct(">Q")


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Who asks: what a new object belongs to."""

    uid: int
    gid: int
    umask: int = 0


class _Gone(msgspec.Struct, frozen=True, gc=False):
    """An inode that is about to lose its last name; ``placed``: its number had to be noted."""

    inode: int
    entry: TreeEntry
    placed: bool = True


def find(parent: Directory, name: bytes) -> TreeEntry:
    """Return the entry called ``name``.

    Raises:
        NotFoundError, NameTooLongError: there is none.
    """
    entry = parent.find(name)
    if entry is None:
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLongError(f"a name of {len(name)} bytes")
        raise NotFoundError(f"no {name!r}")
    return entry


def require_free(parent: Directory, name: bytes) -> None:
    """Check that ``parent`` can get an entry called ``name``.

    Raises:
        ExistsError, NameTooLongError, InvalidError, NotFoundError: the name or the directory.
    """
    if len(name) > NAME_BYTES_MAX:
        raise NameTooLongError(f"a name of {len(name)} bytes")
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise InvalidError(f"{name!r} is no name")
    if parent.removed:
        raise NotFoundError("the directory was removed")
    if parent.find(name) is not None:
        raise ExistsError(f"{name!r} exists")


def make(
    state: ViewState, parent: Directory, fresh: TreeEntry, caller: Caller, now_ns: int
) -> TreeEntry:
    """Make ``fresh`` (whose slot, owner, times and inherited ACL are filled in) in ``parent``.

    Raises:
        ExistsError, NameTooLongError, InvalidError, NotFoundError: the name or the directory.
    """
    require_free(parent, fresh.name)
    slot = parent.new_slot()
    mode, gid = fresh.mode, caller.gid
    if parent.entry.mode & stat.S_ISGID:
        gid = parent.entry.gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
    mode, xattrs = _inherit(parent, mode, caller.umask)
    entry = msgspec.structs.replace(
        fresh, slot=slot, mode=mode, uid=caller.uid, gid=gid, mtime_ns=now_ns, xattrs=xattrs
    )
    edits: list[NameEdit] = [Put(parent.number, entry)]
    if entry.is_directory or slot > SLOT_MAX:
        inode = directory_inode(state.inodes.new_number())
        edits.insert(0, Place(inode, parent.number, slot))
    record(state, now_ns, edits)
    return entry


def _inherit(
    parent: Directory, mode: int, umask: int
) -> tuple[int, tuple[tuple[bytes, bytes], ...]]:
    """Return mode and ACLs of a new object: a default ACL replaces the umask, acl(5)."""
    if stat.S_ISLNK(mode):
        return mode, ()
    default = dict(parent.entry.xattrs).get(acl.DEFAULT) if parent.entry.xattrs else None
    if default is None:
        return mode & ~umask, ()
    mode, access = acl.inherit(default, mode)
    xattrs = []
    if access is not None:
        xattrs.append((acl.ACCESS, access))
    if stat.S_ISDIR(mode):
        xattrs.append((acl.DEFAULT, default))
    return mode, tuple(sorted(xattrs))


def link(state: ViewState, inode: int, parent: Directory, name: bytes, now_ns: int) -> TreeEntry:
    """Give the inode one more name.

    Raises:
        NotPermittedError: a directory. CrossScopeError: the name would lie in another scope.
        TooManyLinksError: it has too many.
    """
    require_free(parent, name)
    holder, entry = state.locate(inode)
    file = state.files.get(inode)
    if file is not None:
        entry = file.named_entry()
    if entry.is_directory:
        raise NotPermittedError("a directory cannot have a second name")
    if holder.scope is not parent.scope:
        raise CrossScopeError("hard links cannot leave a snapshot's directory")
    if entry.nlink >= LINKS_MAX:
        raise TooManyLinksError(f"{entry.nlink} names")
    edits: list[NameEdit] = []
    links = state.links(holder.scope)
    if not holder.is_links:
        edits += _move_to_links(holder, entry, inode, links)
        moved = edits[-1]
        assert isinstance(moved, Put)
        entry = msgspec.structs.replace(entry, name=moved.entry.content, slot=links.next_slot - 1)
    linked = msgspec.structs.replace(entry, nlink=entry.nlink + 1, ctime_ns=now_ns)
    made = TreeEntry(name=name, slot=parent.new_slot(), mode=LINK_MODE, content=entry.name)
    edits += [Put(links.number, linked), Put(parent.number, made)]
    record(state, now_ns, edits)
    return made


def _move_to_links(
    holder: Directory, entry: TreeEntry, inode: int, links: Directory
) -> list[NameEdit]:
    """Return the edits that turn a plain entry into a name of an inode in ``links``."""
    slot = links.new_slot()
    number = slot
    while links.find(_LINK_ID.pack(number)) is not None:  # an import numbers them its own way
        number += 1
    link_id = _LINK_ID.pack(number)
    name = TreeEntry(name=entry.name, slot=entry.slot, mode=LINK_MODE, content=link_id)
    return [Place(inode, links.number, slot), Put(holder.number, name)]


def unlink(state: ViewState, parent: Directory, name: bytes, now_ns: int) -> None:
    """Remove a name that is not a directory's.

    Raises:
        NotFoundError, IsADirectoryNameError: it is not there, or a directory.
    """
    entry = find(parent, name)
    if entry.is_directory:
        raise IsADirectoryNameError(f"{name!r} is a directory")
    edits, gone = _drop(state, parent, entry, now_ns)
    record(state, now_ns, [Remove(parent.number, name, parent.sequence_under(name)), *edits])
    _forget(state, gone, now_ns)


def _drop(
    state: ViewState, parent: Directory, entry: TreeEntry, now_ns: int
) -> tuple[list[NameEdit], _Gone | None]:
    """Return the edits that follow when ``entry`` loses its name, and the inode that is gone."""
    holder, inode_entry = state.resolve(parent, entry)
    inode = state.inode_of(parent, entry)
    file = state.files.get(inode)
    if entry.is_link and inode_entry.nlink > 1:
        if file is not None:
            inode_entry = file.named_entry()
        fewer = msgspec.structs.replace(inode_entry, nlink=inode_entry.nlink - 1, ctime_ns=now_ns)
        return [Put(holder.number, fewer)], None
    edits: list[NameEdit] = []
    if entry.is_link:
        edits.append(Remove(holder.number, inode_entry.name, 0))
    if file is not None and file.open_count:
        nameless = msgspec.structs.replace(file.named_entry(), nlink=0, ctime_ns=now_ns)
        edits.append(Orphan(inode, nameless))
    left = inode_entry if file is None else file.current_entry()
    left = msgspec.structs.replace(left, nlink=0, ctime_ns=now_ns)
    return edits, _Gone(inode, left, inode_entry.slot in holder.places)


def _gone(child: Directory, now_ns: int) -> Orphan:
    """Return the edit for a directory without a name: somebody may still be in it."""
    entry = msgspec.structs.replace(child.entry, content=b"", ctime_ns=now_ns)
    return Orphan(child.inode, entry)


def _forget(state: ViewState, gone: _Gone | None, now_ns: int) -> None:
    """Take an inode that lost its last name out of the tree; the kernel may still know it."""
    if gone is None:
        return
    inode = gone.inode
    directory = state.directories.get(directory_number(inode))
    if directory is not None and directory.inode == inode:
        directory.removed = True  # its number goes when the kernel forgets it
        directory.set_attributes(msgspec.structs.replace(directory.entry, ctime_ns=now_ns))
        return
    state.keep_nameless(inode, gone.entry)
    if gone.placed:
        state.inodes.forget(inode)


def forget_directory(state: ViewState, inode: int) -> None:
    """Drop what is kept of a removed directory that the kernel no longer knows."""
    directory = state.directories.get(directory_number(inode))
    if directory is not None and directory.removed and directory.inode == inode:
        del state.directories[directory.number]
        state.inodes.forget(inode)
        with suppress(StoreError):  # then the next daemon keeps it for nothing
            append_orphan(state, inode, None, 0)


def rmdir(state: ViewState, parent: Directory, name: bytes, now_ns: int) -> None:
    """Remove an empty directory.

    Raises:
        NotFoundError, NotADirectoryNameError, NotEmptyError: it cannot be removed.
    """
    entry = find(parent, name)
    if not entry.is_directory:
        raise NotADirectoryNameError(f"{name!r} is no directory")
    child = state.child(parent, entry)
    if not child.is_empty():
        raise NotEmptyError(f"{name!r} is not empty")
    gone = _gone(child, now_ns)
    record(state, now_ns, [Remove(parent.number, name, parent.sequence_under(name)), gone])
    _forget(state, _Gone(child.inode, child.entry), now_ns)


def rename(
    state: ViewState,
    old_parent: Directory,
    old_name: bytes,
    new_parent: Directory,
    new_name: bytes,
    flags: int,
    now_ns: int,
) -> None:
    """Rename, replacing, not replacing, or exchanging what is at the new name.

    Raises:
        NamespaceError: as rename(2) says.
    """
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise InvalidError(f"rename flags {flags}")
    entry = find(old_parent, old_name)
    if len(new_name) > NAME_BYTES_MAX:
        raise NameTooLongError(f"a name of {len(new_name)} bytes")
    if new_parent.removed:
        raise NotFoundError("the directory was removed")
    target = new_parent.find(new_name)
    if flags == RENAME_EXCHANGE:
        if target is None:
            raise NotFoundError(f"no {new_name!r}")
        _exchange(state, old_parent, entry, new_parent, target, now_ns)
        return
    if target is not None and flags == RENAME_NOREPLACE:
        raise ExistsError(f"{new_name!r} exists")
    _require_movable(state, old_parent, entry, new_parent)
    gone: _Gone | None = None
    edits: list[NameEdit] = [
        Remove(old_parent.number, old_name, old_parent.sequence_under(old_name))
    ]
    if target is not None:
        if state.inode_of(old_parent, entry) == state.inode_of(new_parent, target):
            return  # two names of one inode: rename(2) does nothing
        replaced, gone = _replace(state, entry, new_parent, target, now_ns)
        edits += replaced
    edits += _move(state, old_parent, entry, new_parent, new_name, now_ns)
    record(state, now_ns, edits)
    _forget(state, gone, now_ns)


def _replace(
    state: ViewState, entry: TreeEntry, parent: Directory, target: TreeEntry, now_ns: int
) -> tuple[list[NameEdit], _Gone | None]:
    """Check that ``entry`` may replace ``target``; return the edits and the inode that is gone."""
    if target.is_directory:
        if not entry.is_directory:
            raise IsADirectoryNameError(f"{target.name!r} is a directory")
        child = state.child(parent, target)
        if not child.is_empty():
            raise NotEmptyError(f"{target.name!r} is not empty")
        return [_gone(child, now_ns)], _Gone(child.inode, child.entry)
    if entry.is_directory:
        raise NotADirectoryNameError(f"{target.name!r} is no directory")
    return _drop(state, parent, target, now_ns)


def _move(
    state: ViewState,
    old_parent: Directory,
    entry: TreeEntry,
    new_parent: Directory,
    new_name: bytes,
    now_ns: int,
) -> list[NameEdit]:
    """Return the edits that put ``entry`` under its new name, its inode number going along."""
    inode = state.inode_of(old_parent, entry)
    slot = _slot(old_parent, entry, new_parent)
    if entry.is_link:
        moved = msgspec.structs.replace(entry, name=new_name, slot=slot)
        return [Put(new_parent.number, moved), *_touch_link(state, old_parent, entry, now_ns)]
    current = state.named_entry(inode)
    if isinstance(old_parent, CatalogDirectory) and not old_parent.owns(entry):
        state.hold(entry)
    if current.is_directory and not isinstance(new_parent, CatalogDirectory):
        current = msgspec.structs.replace(current, content=current.content[:ID_BYTES])
    moved = msgspec.structs.replace(current, name=new_name, slot=slot, ctime_ns=now_ns)
    edits: list[NameEdit] = []
    if slot != entry.slot or new_parent is not old_parent:
        edits.append(Place(inode, new_parent.number, slot))
    edits.append(Put(new_parent.number, moved))
    return edits


def _touch_link(
    state: ViewState, parent: Directory, entry: TreeEntry, now_ns: int
) -> list[NameEdit]:
    holder, _ = state.resolve(parent, entry)
    current = state.named_entry(state.inode_of(parent, entry))
    return [Put(holder.number, msgspec.structs.replace(current, ctime_ns=now_ns))]


def _slot(old_parent: Directory, entry: TreeEntry, new_parent: Directory) -> int:
    """Within one directory a renamed entry keeps its slot, and so its number without a row.

    Not in a catalogue's root: there the slot of a snapshot says which snapshot it is.
    """
    if new_parent is old_parent and not isinstance(old_parent, CatalogDirectory):
        return entry.slot
    return new_parent.new_slot()


def _require_movable(
    state: ViewState, old_parent: Directory, entry: TreeEntry, new_parent: Directory
) -> None:
    if entry.is_directory:
        moved = state.child(old_parent, entry)
        above: Directory | None = new_parent
        while above is not None:
            if above is moved:
                raise InvalidError("a directory cannot be moved into itself")
            above = above.parent
        if new_parent is old_parent:
            return
        scope_ends = moved.is_scope or old_parent.scope is not new_parent.scope
        if scope_ends and state.has_links(moved):
            raise CrossScopeError("the directory holds hard links that cannot leave their snapshot")
    elif entry.is_link and old_parent.scope is not new_parent.scope:
        raise CrossScopeError("a hard-linked file cannot leave its snapshot's directory")


def _exchange(
    state: ViewState,
    one_parent: Directory,
    one: TreeEntry,
    other_parent: Directory,
    other: TreeEntry,
    now_ns: int,
) -> None:
    _require_movable(state, one_parent, one, other_parent)
    _require_movable(state, other_parent, other, one_parent)
    if one_parent is other_parent and one.name == other.name:
        return
    edits = [
        Remove(one_parent.number, one.name, one_parent.sequence_under(one.name)),
        Remove(other_parent.number, other.name, other_parent.sequence_under(other.name)),
        *_move(state, one_parent, one, other_parent, other.name, now_ns),
        *_move(state, other_parent, other, one_parent, one.name, now_ns),
    ]
    record(state, now_ns, edits)
