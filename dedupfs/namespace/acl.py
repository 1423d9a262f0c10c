"""POSIX ACLs as the kernel passes them in extended attributes, kept in step with mode bits.

Pure functions, bytes and ints in, bytes and ints out; knows no inodes and no views. Only the view
calls it; the kernel checks permissions itself (``default_permissions`` and ``FUSE_POSIX_ACL``).

    validate(acl) -> None                         InvalidError unless it is a well-formed ACL
    is_minimal(acl) -> bool                       says no more than nine mode bits can
    mode_with_acl(acl, mode) -> int               mode after system.posix_acl_access was set
    acl_with_mode(acl, mode) -> bytes             the access ACL after chmod
    set_access(acl, mode) -> (int, bytes | None)  for setxattr: new mode, ACL to keep (None: drop)
    inherit(default_acl, mode) -> (int, bytes | None)   mode and access ACL of a new object

``inherit`` takes the mode as the caller of open(2) gave it, umask not applied; without a default
ACL in the directory a new mode is ``mode & ~umask``. A new directory keeps the default ACL as its
own; a symbolic link inherits nothing.

Source: linux/posix_acl_xattr.h (layout), acl(5) (validity, "OBJECT CREATION AND DEFAULT ACLs",
"CORRESPONDENCE BETWEEN ACL ENTRIES AND FILE PERMISSION BITS").
"""

import struct
from collections.abc import Iterable

from dedupfs.errors import InvalidError

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")  # tag, permissions, user or group id
_CURRENT_VERSION = 2
_UNDEFINED_ID = 0xFFFFFFFF

_USER_OBJ = 0x01
_USER = 0x02
_GROUP_OBJ = 0x04
_GROUP = 0x08
_MASK = 0x10
_OTHER = 0x20
_NAMED = (_USER, _GROUP)
_ONE_EACH = (_USER_OBJ, _GROUP_OBJ, _OTHER)
_TAGS = (_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER)  # the order they must stand in

_PERMISSION_BITS = 0o777

Entry = tuple[int, int, int]


def validate(acl: bytes) -> None:
    """Refuse what is not a well-formed ACL.

    Raises:
        InvalidError: wrong version or length, unknown tags, tags out of order, an entry missing or
            there twice, or named entries without a mask. As in Linux's posix_acl_valid, one user
            or group may be named twice: the first entry counts.
    """
    entries = _decode(acl)
    tags = [tag for tag, _permissions, _id in entries]
    if any(tag not in _TAGS for tag in tags):
        raise InvalidError("an ACL entry has an unknown tag")
    if any(permissions & ~0o7 for _tag, permissions, _id in entries):
        raise InvalidError("an ACL entry has unknown permissions")
    if tags != sorted(tags):
        raise InvalidError("the entries of an ACL are out of order")
    if any(tags.count(tag) != 1 for tag in _ONE_EACH) or tags.count(_MASK) > 1:
        raise InvalidError("an ACL needs one entry each for owner, group and others")
    if any(tag in _NAMED for tag in tags) and _MASK not in tags:
        raise InvalidError("an ACL with named entries needs a mask")
    if any(tag in _NAMED and entry_id == _UNDEFINED_ID for tag, _permissions, entry_id in entries):
        raise InvalidError("an ACL has a named entry without a user or group")


def is_minimal(acl: bytes) -> bool:
    """Whether mode bits alone say the same, so that no attribute is needed."""
    return all(tag in _ONE_EACH for tag, _permissions, _id in _decode(acl))


def mode_with_acl(acl: bytes, mode: int) -> int:
    """Mode of a file after ``acl`` became its access ACL; type and suid/sgid/sticky bits stay."""
    by_tag = _permissions_by_tag(_decode(acl))
    group = by_tag.get(_MASK, by_tag[_GROUP_OBJ])
    permissions = by_tag[_USER_OBJ] << 6 | group << 3 | by_tag[_OTHER]
    return mode & ~_PERMISSION_BITS | permissions


def acl_with_mode(acl: bytes, mode: int) -> bytes:
    """Access ACL of a file with ``acl`` after its mode became ``mode`` (chmod).

    The group bits go to the mask when there is one: they bound the named entries.
    """
    entries = _decode(acl)
    group_tag = _group_class_tag(entries)
    wanted = {_USER_OBJ: mode >> 6 & 0o7, group_tag: mode >> 3 & 0o7, _OTHER: mode & 0o7}
    return _encode((tag, wanted.get(tag, old), entry_id) for tag, old, entry_id in entries)


def set_access(acl: bytes, mode: int) -> tuple[int, bytes | None]:
    """Mode and ACL to keep when ``acl`` is set on a file of ``mode``; None: the mode says it all.

    Raises:
        InvalidError: ``acl`` is not well-formed.
    """
    validate(acl)
    return mode_with_acl(acl, mode), None if is_minimal(acl) else acl


def inherit(default_acl: bytes, mode: int) -> tuple[int, bytes | None]:
    """Mode and access ACL of a new object in a directory with ``default_acl``.

    ``mode`` is the one that open(2) or mkdir(2) was called with: where a default ACL exists the
    umask has no say. The second value is None when the mode says it all.
    """
    entries = _decode(default_acl)
    group_tag = _group_class_tag(entries)
    shift_of = {_USER_OBJ: 6, group_tag: 3, _OTHER: 0}
    access: list[Entry] = []
    for tag, permissions, entry_id in entries:
        shift = shift_of.get(tag)
        allowed = permissions if shift is None else permissions & mode >> shift
        access.append((tag, allowed, entry_id))
    acl = _encode(access)
    return mode_with_acl(acl, mode), None if is_minimal(acl) else acl


def _group_class_tag(entries: Iterable[Entry]) -> int:
    """The entry that the mode's group bits stand for."""
    return _MASK if any(tag == _MASK for tag, _permissions, _id in entries) else _GROUP_OBJ


def _permissions_by_tag(entries: Iterable[Entry]) -> dict[int, int]:
    return {tag: permissions for tag, permissions, _id in entries}


def _decode(acl: bytes) -> list[Entry]:
    body = len(acl) - _VERSION.size
    if body < 0 or body % _ENTRY.size:
        raise InvalidError(f"{len(acl)} bytes are no ACL")
    if _VERSION.unpack_from(acl)[0] != _CURRENT_VERSION:
        raise InvalidError("an ACL of an unknown version")
    return list(_ENTRY.iter_unpack(memoryview(acl)[_VERSION.size :]))


def _encode(entries: Iterable[Entry]) -> bytes:
    return _VERSION.pack(_CURRENT_VERSION) + b"".join([_ENTRY.pack(*entry) for entry in entries])
