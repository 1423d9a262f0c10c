"""Attributes of inodes in a view: mode, owner, times, size, extended attributes.

Checks, then records the inode's new entry. Permission to do so was checked by the kernel
(``default_permissions``). Knows no handles.
"""

import stat
from collections.abc import Callable

import msgspec

from dedupfs.errors import (
    ExistsError,
    InvalidError,
    IsADirectoryNameError,
    NoAttributeError,
    NoRoomError,
    NotPermittedError,
    NotSupportedError,
)
from dedupfs.format.journal import Attributes, Put
from dedupfs.model import ATIME_EPOCH_NS, TreeEntry, xattrs_fit
from dedupfs.namespace import acl
from dedupfs.namespace.inodes import ROOT_INODE
from dedupfs.namespace.journaling import append_orphan, record
from dedupfs.namespace.state import ViewState
from dedupfs.namespace.writing import truncate

XATTR_CREATE = 1
XATTR_REPLACE = 2
XATTR_VALUE_BYTES_MAX = 65_536
TIME_NS_MAX = (1 << 63) - 1
OWN_PREFIX = b"user.dedupfs."
CAPABILITY = b"security.capability"
NAMESPACES = (b"user.", b"trusted.", b"security.")
"""Prefixes of the names that may be set, xattr(7); behind each of them any name will do."""


class AttrChange(msgspec.Struct, frozen=True, gc=False):
    """What a setattr asks for; None: stays."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    privileged: bool = False
    """The caller may change a file and keep its suid and sgid bits (CAP_FSETID)."""
    caller_uid: int = 0
    """Who asks; the kernel has checked what it asks for, but not what follows from nothing."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be set: so chown(2) to no user and no group arrives here.

        A kernel that keeps times tells when that was.
        """
        return self._asks_for_times_alone and self.mtime_ns is None

    @property
    def tells_times(self) -> bool:
        """Whether it only hands over the times that a kernel has kept, whenever that may be."""
        return self._asks_for_times_alone and self.mtime_ns is not None

    @property
    def _asks_for_times_alone(self) -> bool:
        return (
            self.mode is None
            and self.size is None
            and self.uid is None
            and self.gid is None
            and self.atime_ns is None
        )


def put_attributes(
    state: ViewState, inode: int, entry: TreeEntry, now_ns: int, *, told: bool = False
) -> None:
    """Record ``entry`` as what ``inode`` is now.

    ``told``: only times differ, which the kernel keeps as long as it knows the inode. So nobody
    ever misses those of a file without a name, and each unlink(2) tells some.
    """
    if entry.is_directory:
        directory = state.directory(inode)
        if directory.removed:
            append_orphan(state, inode, msgspec.structs.replace(entry, content=b""), now_ns)
            directory.set_attributes(entry)
            return
        record(state, now_ns, [Attributes(directory.number, entry)])
        return
    file = state.files.get(inode)
    if file is not None and file.orphan:
        if not told:
            append_orphan(state, inode, entry, now_ns)
        file.entry = entry
        file.mtime_ns, file.ctime_ns = entry.mtime_ns, entry.ctime_ns
        return
    if inode in state.nameless:
        state.nameless[inode] = entry
        return
    holder, old = state.locate(inode)
    settled = file.entry if file is not None else entry
    named = msgspec.structs.replace(
        entry,
        name=old.name,
        slot=old.slot,
        content=settled.content,
        size=settled.size,
        hole_bytes=settled.hole_bytes,
    )
    record(state, now_ns, [Put(holder.number, named)])


def setattr_(state: ViewState, inode: int, change: AttrChange, now_ns: int) -> TreeEntry:
    """Change attributes, and return all of them; size first, since it can fail.

    Raises:
        IsADirectoryNameError, InvalidError: a size for what is no regular file.
        NotPermittedError: another one's file would lose its set-id bits.
    """
    if change.size is not None:
        _set_size(state, inode, change.size, now_ns)
        drop_privileges(state, inode, keep_bits=change.privileged, now_ns=now_ns)
    entry = state.entry_of(inode)
    fields: dict[str, object] = {}
    xattrs = entry.xattrs
    if change.mode is not None:
        mode = stat.S_IFMT(entry.mode) | stat.S_IMODE(change.mode)
        access = dict(xattrs).get(acl.ACCESS) if xattrs else None
        if access is not None:
            xattrs = with_xattr(xattrs, acl.ACCESS, acl.acl_with_mode(access, mode))
        fields["mode"] = mode
    if change.uid is not None or change.gid is not None or change.is_empty:
        fields["uid"] = entry.uid if change.uid is None else change.uid
        fields["gid"] = entry.gid if change.gid is None else change.gid
        if not entry.is_directory:
            fields.setdefault("mode", _given_away(state, inode, entry, change))
            xattrs = with_xattr(xattrs, CAPABILITY, None)
    fields |= _new_times(entry, change)
    if fields or xattrs is not entry.xattrs:
        fields["xattrs"] = xattrs
        fields["ctime_ns"] = _ctime(state, entry, now_ns, change.ctime_ns)
        changed = msgspec.structs.replace(entry, **fields)
        told = change.tells_times and state.kernel_keeps_times
        if not told or changed != entry:
            put_attributes(state, inode, changed, now_ns, told=told)
        entry = changed
    if not change.tells_times:
        state.uncapped = None
    return entry


def _new_times(entry: TreeEntry, change: AttrChange) -> dict[str, object]:
    """Return the fields that utimensat(2) sets, and a kernel that keeps times."""
    fields: dict[str, object] = {}
    if change.mtime_ns is not None:
        fields["mtime_ns"] = _clamped(change.mtime_ns)
    if change.atime_ns is not None:
        fields["atime_ns"] = _clamped(change.atime_ns) or ATIME_EPOCH_NS
    elif change.mtime_ns is not None:
        fields["atime_ns"] = entry.kept_atime_ns
    return fields


def _given_away(state: ViewState, inode: int, entry: TreeEntry, change: AttrChange) -> int:
    """Return the mode of a file that chown(2) gives away, or that somebody is about to write.

    The kernel asks for both in the same way, and before a write that takes a capability it does so
    though the bits stay. What nobody has open, nobody can be writing.
    """
    mode = without_privileges(entry.mode)
    if not change.is_empty or mode == entry.mode:
        return mode
    file = state.files.get(inode)
    is_open = file is not None and file.open_count > 0
    if is_open and state.uncapped == inode:
        return entry.mode
    if not is_open and change.caller_uid not in (0, entry.uid):
        raise NotPermittedError("only the owner may take set-id bits away")
    return mode


def _clamped(time_ns: int) -> int:
    """Return the nearest time that an entry can hold (years 1677 to 2262), as the kernel does for
    file systems whose limits it knows (utimensat(2))."""
    return max(-TIME_NS_MAX, min(time_ns, TIME_NS_MAX))


def without_privileges(mode: int) -> int:
    """Return the mode without suid, and without sgid where that is not mandatory locking."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def drop_privileges(
    state: ViewState, inode: int, *, keep_bits: bool, now_ns: int, keep_capability: bool = False
) -> None:
    """A file's bytes change: take what let its old bytes do more than others (chmod(2), xattr(7)).

    The kernel leaves this to us (FUSE_HANDLE_KILLPRIV_V2), so that it need not ask before a write.
    """
    entry = state.entry_of(inode)
    mode = entry.mode if keep_bits else without_privileges(entry.mode)
    xattrs = entry.xattrs if keep_capability else with_xattr(entry.xattrs, CAPABILITY, None)
    if mode != entry.mode or xattrs is not entry.xattrs:
        ctime_ns = _ctime(state, entry, now_ns)
        changed = msgspec.structs.replace(entry, mode=mode, xattrs=xattrs, ctime_ns=ctime_ns)
        put_attributes(state, inode, changed, now_ns)


def _ctime(state: ViewState, entry: TreeEntry, now_ns: int, told_ns: int | None = None) -> int:
    """Return when a request changed a file: as told, else now, or what it was where the kernel
    keeps times: there it tells what it wants to have."""
    if told_ns is not None:
        return told_ns
    return entry.ctime_ns if state.kernel_keeps_times and entry.is_file else now_ns


def _set_size(state: ViewState, inode: int, size: int, now_ns: int) -> None:
    entry = state.entry_of(inode)
    if entry.is_directory:
        raise IsADirectoryNameError("a directory has no size to set")
    if not entry.is_file:
        raise InvalidError("only a regular file has a size to set")
    if size != entry.size:
        truncate(state, state.open_file(inode), size, now_ns)
        return
    note_same_size(state, inode, now_ns)


def note_same_size(state: ViewState, inode: int, now_ns: int) -> None:
    """A file was cut off where it ends already, which changes no byte but its times."""
    if state.kernel_keeps_times:
        return
    entry = state.entry_of(inode)
    changed = msgspec.structs.replace(
        entry, atime_ns=entry.kept_atime_ns, mtime_ns=now_ns, ctime_ns=0
    )
    put_attributes(state, inode, changed, now_ns)


def with_xattr(
    xattrs: tuple[tuple[bytes, bytes], ...], name: bytes, value: bytes | None
) -> tuple[tuple[bytes, bytes], ...]:
    """Return sorted attributes with ``name`` set to ``value``, or removed when that is None."""
    if value is None and (not xattrs or all(name != key for key, _ in xattrs)):
        return xattrs
    kept = [(key, old) for key, old in xattrs if key != name]
    if value is not None:
        kept.append((name, value))
    return tuple(sorted(kept))


def setxattr(
    state: ViewState,
    inode: int,
    name: bytes,
    value: bytes,
    flags: int,
    now_ns: int,
    is_member: Callable[[int], bool],
) -> None:
    """Set an extended attribute; an access ACL also sets the mode, and takes sgid as chmod(2) does.

    ``is_member``: whether the caller may give a file of this group sgid.

    Raises:
        ExistsError, NoAttributeError: XATTR_CREATE or XATTR_REPLACE do not fit.
        NotPermittedError: one of dedupfs's own names. InvalidError: no valid ACL.
        NoRoomError: the file has too many.
    """
    if name.startswith(OWN_PREFIX):
        raise NotPermittedError("user.dedupfs.* attributes are read-only")
    if len(value) > XATTR_VALUE_BYTES_MAX:
        raise InvalidError(f"an attribute of {len(value)} bytes")
    _require_namespace(name)
    entry = state.entry_of(inode)
    known = dict(entry.xattrs)
    if flags & XATTR_CREATE and name in known:
        raise ExistsError(f"{name!r} is set")
    if flags & XATTR_REPLACE and name not in known:
        raise NoAttributeError(f"{name!r} is not set")
    mode = entry.mode
    kept: bytes | None = value
    if name in (acl.ACCESS, acl.DEFAULT):
        mode, kept = _with_acl(entry, name, value, is_member)
    xattrs = with_xattr(entry.xattrs, name, kept)
    if not xattrs_fit(xattrs):
        raise NoRoomError("no room for more attributes of one file")
    changed = msgspec.structs.replace(entry, mode=mode, xattrs=xattrs, ctime_ns=now_ns)
    put_attributes(state, inode, changed, now_ns)


def _with_acl(
    entry: TreeEntry, name: bytes, value: bytes, is_member: Callable[[int], bool]
) -> tuple[int, bytes | None]:
    """Check an ACL; return the mode that goes with it and what is left to keep of it."""
    if name == acl.DEFAULT:
        if not entry.is_directory:
            raise NotPermittedError("only a directory has a default ACL")
        acl.validate(value)
        return entry.mode, value
    if entry.is_symlink:
        raise NotSupportedError("a symbolic link has no ACL")
    mode, kept = acl.set_access(value, entry.mode)
    if mode & stat.S_ISGID and not is_member(entry.gid):
        mode &= ~stat.S_ISGID
    return mode, kept


def removexattr(state: ViewState, inode: int, name: bytes, now_ns: int) -> None:
    """Remove an extended attribute.

    Raises:
        NoAttributeError: it is not set. NotPermittedError: one of dedupfs's own names.
        NotSupportedError, InvalidError: it never could be.
    """
    if name.startswith(OWN_PREFIX):
        raise NotPermittedError("user.dedupfs.* attributes are read-only")
    entry = state.entry_of(inode)
    if name not in dict(entry.xattrs) and name not in (acl.ACCESS, acl.DEFAULT):
        _require_namespace(name)  # while an ACL that is not there says what the mode says
        raise NoAttributeError(f"{name!r} is not set")
    xattrs = with_xattr(entry.xattrs, name, None)
    changed = msgspec.structs.replace(entry, xattrs=xattrs, ctime_ns=now_ns)
    put_attributes(state, inode, changed, now_ns)
    state.uncapped = inode if name == CAPABILITY else None


def getxattr(state: ViewState, inode: int, name: bytes) -> bytes:
    """Return the value of an extended attribute.

    Raises:
        NoAttributeError: it is not set. NotSupportedError, InvalidError: it never could be.
    """
    entry = state.entry_of(inode)
    for key, value in entry.xattrs:
        if key == name:
            return value
    if name.startswith(OWN_PREFIX):
        own = _own_attribute(state, inode, entry, name.removeprefix(OWN_PREFIX))
        if own is not None:
            return own
    _require_namespace(name)
    raise NoAttributeError(f"{name!r} is not set")


def _require_namespace(name: bytes) -> None:
    """Refuse a name that no file system has.

    What is set already is found under any name: an import keeps what it was given.
    """
    if name in NAMESPACES:
        raise InvalidError(f"{name!r} is a prefix alone")
    if not name.startswith(NAMESPACES) and name not in (acl.ACCESS, acl.DEFAULT):
        raise NotSupportedError(f"{name!r} is in no namespace of extended attributes")


def _own_attribute(state: ViewState, inode: int, entry: TreeEntry, name: bytes) -> bytes | None:
    if name == b"store":
        return bytes(state.store.path)
    if name == b"view" and state.view_name:
        return state.view_name.encode()
    if name == b"logical_bytes":
        return str(entry.size).encode()
    if name == b"origin":
        return b"base" if inode not in state.files and not _changed(state, inode) else b"view"
    if entry.is_file and name in (b"chunks", b"stored_bytes"):
        ids = set(state.open_ids(inode))
        if name == b"chunks":
            return str(len(ids)).encode()
        return str(sum(state.store.locate(i).stored_bytes for i in ids)).encode()
    return None


def _changed(state: ViewState, inode: int) -> bool:
    if inode == ROOT_INODE:
        return state.root.dirty
    holder, entry = state.locate(inode)
    return entry.name in holder.changes
