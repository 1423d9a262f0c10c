"""Mode bits, ACLs, times and extended attributes as POSIX and acl(5) have them."""

import os
import stat
from collections.abc import Iterator

import pytest

from dedupfs.errors import ExistsError, InvalidError, NoAttributeError, NotPermittedError
from dedupfs.namespace import acl
from dedupfs.namespace.view import AttrChange, Caller, View
from dedupfs.store.store import Store

CALLER = Caller(7, 8, 0o027)
DEFAULT_ACL = (
    b"\x02\x00\x00\x00"
    b"\x01\x00\x07\x00\xff\xff\xff\xff"
    b"\x02\x00\x06\x00\x2a\x00\x00\x00"
    b"\x04\x00\x05\x00\xff\xff\xff\xff"
    b"\x10\x00\x07\x00\xff\xff\xff\xff"
    b"\x20\x00\x05\x00\xff\xff\xff\xff"
)


@pytest.fixture
def view(store: Store) -> Iterator[View]:
    view = View.bring_back(store)
    yield view
    view.close()


def test_the_umask_applies_unless_a_default_acl_replaces_it(view: View) -> None:
    top = view.mkdir(1, b"top", 0o777, CALLER)
    assert stat.S_IMODE(top.mode) == 0o750
    view.setxattr(top.inode, acl.DEFAULT, DEFAULT_ACL)
    handle, attr = view.create(top.inode, b"f", 0o666, CALLER)
    view.release(handle)
    assert stat.S_IMODE(attr.mode) == 0o664
    assert acl.ACCESS in view.listxattr(attr.inode)
    below = view.mkdir(top.inode, b"below", 0o777, CALLER)
    assert view.getxattr(below.inode, acl.DEFAULT) == DEFAULT_ACL


def test_a_setgid_directory_hands_its_group_down(view: View) -> None:
    top = view.mkdir(1, b"top", 0o777, CALLER)
    view.setattr(top.inode, AttrChange(mode=0o2775, gid=99))
    below = view.mkdir(top.inode, b"below", 0o755, CALLER)
    assert below.gid == 99
    assert below.mode & stat.S_ISGID
    handle, attr = view.create(top.inode, b"f", 0o644, CALLER)
    view.release(handle)
    assert (attr.uid, attr.gid) == (7, 99)


def test_times_are_kept_to_the_nanosecond_across_a_remount(store: Store, view: View) -> None:
    handle, attr = view.create(1, b"f", 0o644, CALLER)
    view.release(handle)
    wanted = AttrChange(atime_ns=1_000_000_001, mtime_ns=2_000_000_003)
    changed = view.setattr(attr.inode, wanted)
    view.close()
    again = View.bring_back(store)
    found = again.lookup(1, b"f")
    assert (found.atime_ns, found.mtime_ns) == (1_000_000_001, 2_000_000_003)
    assert found.ctime_ns == changed.ctime_ns
    again.close()


def test_a_write_moves_mtime_and_a_chmod_only_ctime(view: View) -> None:
    handle, made = view.create(1, b"f", 0o644, CALLER)
    view.write(handle, 0, b"x")
    written = view.getattr(made.inode)
    assert written.mtime_ns >= made.mtime_ns
    moded = view.setattr(made.inode, AttrChange(mode=0o600))
    assert moded.mtime_ns == written.mtime_ns
    assert moded.ctime_ns >= written.ctime_ns
    view.release(handle)


def test_extended_attributes_are_set_replaced_and_removed(view: View) -> None:
    inode = view.mkdir(1, b"d", 0o755, CALLER).inode
    view.setxattr(inode, b"user.a", b"1", 1)
    with pytest.raises(ExistsError):
        view.setxattr(inode, b"user.a", b"2", 1)
    with pytest.raises(NoAttributeError):
        view.setxattr(inode, b"user.b", b"2", 2)
    view.setxattr(inode, b"user.a", b"", 2)
    assert view.getxattr(inode, b"user.a") == b""
    view.removexattr(inode, b"user.a")
    assert view.listxattr(inode) == []
    with pytest.raises(NoAttributeError):
        view.removexattr(inode, b"user.a")
    with pytest.raises(InvalidError):
        view.setxattr(inode, b"user.big", bytes(65_537))


def test_our_own_attributes_tell_and_cannot_be_set(store: Store, view: View) -> None:
    handle, attr = view.create(1, b"f", 0o644, CALLER)
    view.write(handle, 0, b"z" * 5000)
    view.release(handle)
    view.fold()
    assert view.getxattr(attr.inode, b"user.dedupfs.logical_bytes") == b"5000"
    assert int(view.getxattr(attr.inode, b"user.dedupfs.chunks")) >= 1
    assert view.getxattr(1, b"user.dedupfs.view") == b"default"
    assert view.getxattr(1, b"user.dedupfs.store") == bytes(store.path)
    assert view.listxattr(attr.inode) == []
    with pytest.raises(NotPermittedError):
        view.setxattr(attr.inode, b"user.dedupfs.chunks", b"0")


def test_changing_a_file_takes_its_privileges_unless_root_does_it(view: View) -> None:
    handle, attr = view.create(1, b"f", 0o755, CALLER)
    inode = attr.inode

    def arm() -> None:
        view.setattr(inode, AttrChange(mode=0o6755))
        view.setxattr(inode, b"security.capability", b"cap")

    arm()
    view.write(handle, 0, b"x")
    assert stat.S_IMODE(view.getattr(inode).mode) == 0o755
    assert view.listxattr(inode) == []
    arm()
    view.setattr(inode, AttrChange(size=0))
    assert stat.S_IMODE(view.getattr(inode).mode) == 0o755
    arm()
    view.setattr(inode, AttrChange(uid=3))
    assert stat.S_IMODE(view.getattr(inode).mode) == 0o755
    assert view.listxattr(inode) == []
    arm()
    root = view.open(inode, os.O_RDWR, privileged=True)
    view.write(root, 0, b"x")
    assert stat.S_IMODE(view.getattr(inode).mode) == 0o6755
    assert view.listxattr(inode) == []
    view.setattr(inode, AttrChange(size=0, privileged=True))
    assert stat.S_IMODE(view.getattr(inode).mode) == 0o6755
    view.setattr(inode, AttrChange(mode=0o2644))
    view.write(handle, 0, b"y")
    assert stat.S_IMODE(view.getattr(inode).mode) == 0o2644, "sgid without x is a lock, not a right"
    view.release(root)
    view.release(handle)


def test_a_write_leaves_atime_alone_also_after_a_crash_and_a_fold(store: Store) -> None:
    view = View.bring_back(store)
    handle, made = view.create(1, b"f", 0o644, CALLER)
    top = view.mkdir(1, b"d", 0o755, CALLER)
    view.write(handle, 0, b"x" * 100)
    view.mkdir(top.inode, b"below", 0o755, CALLER)
    assert view.getattr(made.inode).atime_ns == made.atime_ns < view.getattr(made.inode).mtime_ns
    assert view.getattr(top.inode).atime_ns == top.atime_ns
    view._opened.release()  # as a crash does: nothing was folded
    for _ in range(2):
        again = View.bring_back(store)
        assert again.lookup(1, b"f").atime_ns == made.atime_ns
        assert again.lookup(1, b"d").atime_ns == top.atime_ns
        again.close()


def test_an_atime_of_0_is_told_apart_from_none(store: Store, view: View) -> None:
    made = view.mkdir(1, b"d", 0o755, CALLER)
    assert view.setattr(made.inode, AttrChange(atime_ns=0, mtime_ns=5)).atime_ns == 0
    assert view.setattr(made.inode, AttrChange(mtime_ns=7)).atime_ns == 0
    view.close()
    again = View.bring_back(store)
    assert (again.lookup(1, b"d").atime_ns, again.lookup(1, b"d").mtime_ns) == (0, 7)
    again.close()


def test_times_beyond_64_bits_are_the_last_that_fit(store: Store, view: View) -> None:
    made = view.mkdir(1, b"d", 0o755, CALLER)
    changed = view.setattr(made.inode, AttrChange(atime_ns=-(10**30), mtime_ns=10**30))
    assert (changed.atime_ns, changed.mtime_ns) == (1 - 2**63, 2**63 - 1)
    view.close()
    again = View.bring_back(store)
    assert again.lookup(1, b"d").mtime_ns == 2**63 - 1
    again.close()


def test_chown_to_nobody_takes_set_id_bits_of_a_file_but_not_of_a_directory(view: View) -> None:
    handle, made = view.create(1, b"f", 0o6750, CALLER)
    view.release(handle)
    assert stat.S_IMODE(view.setattr(made.inode, AttrChange(privileged=True)).mode) == 0o750
    directory = view.mkdir(1, b"d", 0o7755, CALLER)
    assert view.setattr(directory.inode, AttrChange()).mode == directory.mode


def test_an_acl_of_somebody_outside_the_group_takes_sgid(view: View) -> None:
    made = view.mkdir(1, b"d", 0o2750, CALLER)
    view.setxattr(made.inode, acl.ACCESS, DEFAULT_ACL, is_member=lambda gid: gid == made.gid)
    assert view.getattr(made.inode).mode & stat.S_ISGID
    view.setxattr(made.inode, acl.ACCESS, DEFAULT_ACL, is_member=lambda gid: gid != made.gid)
    assert not view.getattr(made.inode).mode & stat.S_ISGID


def test_times_that_the_kernel_tells_are_journaled_when_somebody_could_miss_them(
    view: View,
) -> None:
    view.has_cached_writes = True
    handle, attr = view.create(1, b"f", 0o644, CALLER)
    view.write(handle, 0, b"bytes")
    journal = view._state.journal
    assert journal is not None

    def told(time_ns: int) -> int:
        before = journal.size
        changed = view.setattr(attr.inode, AttrChange(mtime_ns=time_ns, ctime_ns=time_ns))
        assert (changed.mtime_ns, changed.ctime_ns) == (time_ns, time_ns)
        assert view.getattr(attr.inode) == changed
        return journal.size - before

    assert told(5)
    assert not told(5), "it is known"
    assert told(6)
    view.unlink(1, b"f")
    assert not told(7), "it has no name, and the kernel knows it for as long as anybody does"
    view.release(handle)
    view.forget([(attr.inode, 1)])
