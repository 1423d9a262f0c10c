"""What the generator chooses from: names, sizes, modes, attributes; ordinary ones and odd ones."""

from __future__ import annotations

from tests.posix.attributes import acl

ALICE, BOB = 50_001, 50_002
"""Ordinary users of the test; Alice is in Bob's group."""
TREE_ENTRIES = 50
SLOTS = 10
PATH_MAX = 4096

NAMES = [b"a", b"b", b"c", b"d", b"e", b"f", b"\xff\xfe\x80", b"new\nline", b"x" * 255]
LENGTHS = [0, 1, 9, 100, 4095, 4096, 4097, 20_000, 70_000, 131_071, 131_073, 300_000]
OFFSETS = [0, 0, 0, 1, 17, 4095, 4096, 65_536, 100_000, 131_072, 262_145]
MODES = [0o755, 0o644, 0o600, 0o777, 0o000, 0o400, 0o4755, 0o2755, 0o6777, 0o1777, 0o2775]
XATTRS = ["user.a", "user.b", "user." + "n" * 250, "trusted.t", "security.s"]
ODD_XATTRS = ["user." + "n" * 251, "user.", "user", "system.x", "other.x", "trusted.", ""]
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
_OWNER, _USER, _GROUP, _NAMED_GROUP, _MASK, _OTHER, _NOBODY = 1, 2, 4, 8, 16, 32, 0xFFFFFFFF
ACLS = [
    acl((_OWNER, 7, _NOBODY), (_GROUP, 5, _NOBODY), (_OTHER, 1, _NOBODY)),
    acl(
        (_OWNER, 6, _NOBODY),
        (_USER, 7, ALICE),
        (_GROUP, 4, _NOBODY),
        (_MASK, 6, _NOBODY),
        (_OTHER, 0, _NOBODY),
    ),
    acl(
        (_OWNER, 7, _NOBODY),
        (_USER, 5, ALICE),
        (_USER, 3, BOB),
        (_GROUP, 0, _NOBODY),
        (_NAMED_GROUP, 6, BOB),
        (_MASK, 7, _NOBODY),
        (_OTHER, 5, _NOBODY),
    ),
    acl((_OWNER, 6, _NOBODY), (_GROUP, 6, _NOBODY), (_MASK, 4, _NOBODY), (_OTHER, 4, _NOBODY)),
]
INVALID_ACLS = [
    b"",
    b"\x02\0\0\0",
    b"\x01\0\0\0" + ACLS[0][4:],
    ACLS[0] + b"x",
    acl((_OWNER, 7, _NOBODY), (_GROUP, 5, _NOBODY)),
    acl((_GROUP, 7, _NOBODY), (_OWNER, 5, _NOBODY), (_OTHER, 1, _NOBODY)),
    acl((_OWNER, 7, _NOBODY), (_USER, 7, 5), (_GROUP, 5, _NOBODY), (_OTHER, 1, _NOBODY)),
    acl((_OWNER, 9, _NOBODY), (_GROUP, 5, _NOBODY), (_OTHER, 1, _NOBODY)),
    acl((_OWNER, 7, _NOBODY), (3, 5, _NOBODY), (_OTHER, 1, _NOBODY)),
    acl(
        (_OWNER, 7, _NOBODY),
        (_USER, 7, 5),
        (_USER, 6, 5),
        (_GROUP, 5, _NOBODY),
        (_MASK, 5, _NOBODY),
        (_OTHER, 1, _NOBODY),
    ),
]
