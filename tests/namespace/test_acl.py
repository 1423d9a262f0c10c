"""ACLs and mode bits must say the same after every change, as acl(5) rules.

Method: hand-made ACLs for each rule, every malformed kind refused, and Hypothesis for the laws that
hold for all ACLs and modes.
"""

import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedupfs.errors import InvalidError
from dedupfs.namespace import acl

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 0xFFFFFFFF


def build(*entries: tuple[int, int, int] | tuple[int, int]) -> bytes:
    """An ACL in the kernel's layout; entries without an id get the undefined one."""
    packed = [
        struct.pack("<HHI", *(entry if len(entry) == 3 else (*entry, NOBODY))) for entry in entries
    ]
    return struct.pack("<I", 2) + b"".join(packed)


def minimal(mode: int) -> bytes:
    return build((USER_OBJ, mode >> 6 & 7), (GROUP_OBJ, mode >> 3 & 7), (OTHER, mode & 7))


def extended(mode: int, named: int = 7, group: int = 5) -> bytes:
    return build(
        (USER_OBJ, mode >> 6 & 7),
        (USER, named, 1000),
        (GROUP_OBJ, group),
        (GROUP, named, 2000),
        (MASK, mode >> 3 & 7),
        (OTHER, mode & 7),
    )


MODES = st.integers(0, 0o7777).map(lambda bits: stat.S_IFREG | bits)
PERMISSIONS = st.integers(0, 7)
ACLS = st.one_of(
    st.integers(0, 0o777).map(minimal),
    st.builds(extended, st.integers(0, 0o777), PERMISSIONS, PERMISSIONS),
)


def test_a_minimal_acl_is_only_mode_bits() -> None:
    assert acl.set_access(minimal(0o640), stat.S_IFREG | 0o4777) == (stat.S_IFREG | 0o4640, None)


def test_the_mask_shows_as_group_bits() -> None:
    wanted = extended(0o750, named=7, group=4)
    assert acl.set_access(wanted, stat.S_IFREG | 0o600) == (stat.S_IFREG | 0o750, wanted)


def test_a_mask_without_named_entries_still_needs_the_attribute() -> None:
    value = build((USER_OBJ, 6), (GROUP_OBJ, 6), (MASK, 4), (OTHER, 0))
    assert not acl.is_minimal(value)
    assert acl.mode_with_acl(value, 0) == 0o640


def test_chmod_moves_the_mask_and_leaves_the_group_entry() -> None:
    assert acl.acl_with_mode(extended(0o770, group=5), 0o604) == extended(0o604, group=5)


def test_chmod_of_an_acl_without_mask_moves_the_group_entry() -> None:
    assert acl.acl_with_mode(minimal(0o777), 0o640) == minimal(0o640)


def test_a_new_file_takes_what_both_the_default_acl_and_its_mode_allow() -> None:
    mode, access = acl.inherit(extended(0o775, named=7, group=5), stat.S_IFREG | 0o666)
    assert mode == stat.S_IFREG | 0o664
    assert access == extended(0o664, named=7, group=5)


def test_a_minimal_default_acl_leaves_no_attribute_on_new_files() -> None:
    assert acl.inherit(minimal(0o750), stat.S_IFDIR | 0o2777) == (stat.S_IFDIR | 0o2750, None)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x02\0\0",
        struct.pack("<I", 1) + minimal(0o777)[4:],
        minimal(0o777)[:-1],
        build(),
        build((USER_OBJ, 7), (GROUP_OBJ, 7)),
        build((USER_OBJ, 7), (USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 7)),
        build((USER_OBJ, 7), (GROUP_OBJ, 7), (MASK, 7), (MASK, 7), (OTHER, 7)),
        build((GROUP_OBJ, 7), (USER_OBJ, 7), (OTHER, 7)),
        build((USER_OBJ, 8), (GROUP_OBJ, 7), (OTHER, 7)),
        build((USER_OBJ, 7), (GROUP_OBJ, 7), (OTHER, 7), (0x40, 7)),
        build((USER_OBJ, 7), (USER, 7, 1), (GROUP_OBJ, 7), (OTHER, 7)),
        build((USER_OBJ, 7), (USER, 7), (GROUP_OBJ, 7), (MASK, 7), (OTHER, 7)),
    ],
)
def test_malformed_acls_are_refused(value: bytes) -> None:
    with pytest.raises(InvalidError):
        acl.validate(value)


@given(st.binary(max_size=64))
def test_any_bytes_are_an_acl_or_an_invalid_error(value: bytes) -> None:
    try:
        mode, kept = acl.set_access(value, 0)
    except InvalidError:
        return
    assert mode == acl.mode_with_acl(value, 0)
    assert kept in (None, value)


@given(ACLS, MODES)
def test_mode_and_acl_agree_after_chmod(value: bytes, mode: int) -> None:
    changed = acl.acl_with_mode(value, mode)
    acl.validate(changed)
    assert acl.mode_with_acl(changed, mode) == mode


@given(ACLS, MODES)
def test_an_inherited_mode_allows_no_more_than_asked(value: bytes, mode: int) -> None:
    inherited, access = acl.inherit(value, mode)
    assert inherited & ~mode == 0
    assert inherited & ~0o777 == mode & ~0o777
    if access is not None:
        acl.validate(access)
        assert acl.mode_with_acl(access, mode) == inherited
