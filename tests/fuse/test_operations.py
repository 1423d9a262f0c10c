"""Handlers translate and decide nothing; whatever a view raises becomes an errno.

Method: the handlers are called as pyfuse3 would call them, without a mount, over a view in a
dictionary. Each error class of dedupfs and a bug are let loose in a handler.
"""

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pyfuse3 = pytest.importorskip("pyfuse3")
trio = pytest.importorskip("trio")

from dedupfs import errors  # noqa: E402
from dedupfs.fuse.attrs import FILE_IO_BYTES, FOREVER_S, VOLATILE_S  # noqa: E402
from dedupfs.fuse.operations import Operations  # noqa: E402
from tests.fuse.fakes import ROOT, FakeView, context  # noqa: E402

ERROR_CLASSES = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.DedupfsError)
]
POSIX_ANSWERS = [error for error in ERROR_CLASSES if issubclass(error, errors.NamespaceError)]
FAILURES = [error for error in ERROR_CLASSES if not issubclass(error, errors.NamespaceError)]
CTX = context(uid=1000, gid=1001)


@pytest.fixture
def view() -> FakeView:
    return FakeView()


@pytest.fixture
def ops(view: FakeView) -> Operations:
    return Operations(view.as_view())


async def errno_of(call: Awaitable[Any]) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await call
    code: int = caught.value.errno
    return code


@pytest.mark.parametrize("error", POSIX_ANSWERS)
async def test_a_posix_answer_is_its_errno_and_nothing_is_logged(
    view: FakeView, ops: Operations, error: type[errors.DedupfsError], caplog: Any
) -> None:
    view.fail_with("getattr", error("no"))
    assert await errno_of(ops.getattr(ROOT, CTX)) == error.errno
    assert not caplog.records


@pytest.mark.allow_log("request failed op=getattr")
@pytest.mark.parametrize("error", FAILURES)
async def test_a_failure_is_its_errno_and_an_error_in_the_log(
    view: FakeView, ops: Operations, error: type[errors.DedupfsError], caplog: Any
) -> None:
    view.fail_with("getattr", error("pack 7 is damaged"))
    assert await errno_of(ops.getattr(ROOT, CTX)) == error.errno
    if error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    ):  # the writer is told; the log need not be
        assert not caplog.records
        return
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "pack 7 is damaged" in record.getMessage()


@pytest.mark.allow_log("bug op=mkdir")
async def test_a_bug_is_eio_for_one_request(view: FakeView, ops: Operations, caplog: Any) -> None:
    view.fail_with("mkdir", ZeroDivisionError())
    assert await errno_of(ops.mkdir(ROOT, b"a", 0o755, CTX)) == errno.EIO
    assert caplog.records[0].levelno == logging.CRITICAL
    assert caplog.records[0].exc_info
    await ops.mkdir(ROOT, b"a", 0o755, CTX)


@pytest.mark.allow_log("bug op=forget")
async def test_forget_never_raises(view: FakeView, ops: Operations) -> None:
    view.fail_with("forget", ZeroDivisionError())
    await ops.forget([(5, 1)])
    await ops.forget([(5, 1), (6, 2)])
    assert view.forgotten == [(5, 1), (6, 2)]


async def test_an_entry_carries_every_attribute(view: FakeView, ops: Operations) -> None:
    _info, entry = await ops.create(ROOT, b"f", 0o4640, os.O_RDWR, CTX)
    attr = view.lookup(ROOT, b"f")
    assert entry.st_ino == attr.inode
    assert entry.st_mode == attr.mode == stat.S_IFREG | 0o4640
    assert (entry.st_uid, entry.st_gid, entry.st_nlink) == (1000, 1001, 1)
    assert (entry.st_atime_ns, entry.st_mtime_ns) == (attr.atime_ns, attr.mtime_ns)
    assert entry.st_ctime_ns == attr.ctime_ns
    assert entry.st_blksize == FILE_IO_BYTES
    assert entry.entry_timeout == entry.attr_timeout == FOREVER_S


async def test_a_device_keeps_its_number(ops: Operations) -> None:
    entry = await ops.mknod(ROOT, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), CTX)
    assert entry.st_rdev == os.makedev(1, 3)


async def test_a_missing_name_may_be_remembered(ops: Operations) -> None:
    entry = await ops.lookup(ROOT, b"absent", CTX)
    assert entry.st_ino == 0
    assert entry.entry_timeout == FOREVER_S


async def test_what_other_processes_change_is_remembered_shortly(
    view: FakeView, ops: Operations
) -> None:
    view.volatile.add(ROOT)
    made = await ops.mkdir(ROOT, b"snapshot", 0o755, CTX)
    found = await ops.lookup(ROOT, b"snapshot", CTX)
    assert made.entry_timeout == found.entry_timeout == VOLATILE_S
    assert (await ops.getattr(ROOT, CTX)).attr_timeout == VOLATILE_S
    assert await errno_of(ops.lookup(ROOT, b"absent", CTX)) == errno.ENOENT


async def test_a_file_is_written_read_and_synced(view: FakeView, ops: Operations) -> None:
    info, entry = await ops.create(ROOT, b"f", 0o644, os.O_RDWR, CTX)
    assert info.keep_cache
    assert await ops.write(info.fh, 2, b"abc") == 3
    assert await ops.read(info.fh, 0, 100) == b"\0\0abc"
    await ops.fsync(info.fh, False)
    await ops.fsyncdir(info.fh, False)
    await ops.release(info.fh)
    assert view.synced == [entry.st_ino, None]
    assert view.calls[-1:] == ["release"]


async def test_bytes_that_need_the_disk_come_from_a_thread() -> None:
    view = FakeView(cached=False)
    ops = Operations(view.as_view())
    info, _entry = await ops.create(ROOT, b"f", 0o644, os.O_RDWR, CTX)
    await ops.write(info.fh, 0, b"abc")
    assert await ops.read(info.fh, 1, 1) == b"b"


@pytest.mark.parametrize("has_request", [False, True])
async def test_a_read_waits_in_place_while_the_kernel_has_no_other_request(
    has_request: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = FakeView(cached=False)
    ops = Operations(view.as_view())
    ops.can_see_requests(lambda: has_request)
    info, _entry = await ops.create(ROOT, b"f", 0o644, os.O_RDWR, CTX)
    hops = []
    in_thread = trio.to_thread.run_sync

    async def hop(run: Callable[[], Any]) -> Any:
        hops.append(run)
        assert not ops.is_idle()
        return await in_thread(run)

    monkeypatch.setattr(trio.to_thread, "run_sync", hop)
    await ops.read(info.fh, 0, 1)
    assert len(hops) == has_request
    assert ops.is_idle()


async def test_open_truncates_and_readlink_answers(ops: Operations) -> None:
    info, entry = await ops.create(ROOT, b"f", 0o644, os.O_RDWR, CTX)
    await ops.write(info.fh, 0, b"abc")
    await ops.open(entry.st_ino, os.O_WRONLY | os.O_TRUNC, CTX)
    assert (await ops.getattr(entry.st_ino, CTX)).st_size == 0
    link = await ops.symlink(ROOT, b"l", b"\xff target", CTX)
    assert await ops.readlink(link.st_ino, CTX) == b"\xff target"


@pytest.mark.parametrize("read_only", [False, True])
async def test_the_kernel_is_spared_its_flushes(read_only: bool) -> None:
    ops = Operations(FakeView(read_only=read_only).as_view())
    assert await errno_of(ops.flush(1)) == errno.ENOSYS


async def test_names_can_be_linked_renamed_and_removed(view: FakeView, ops: Operations) -> None:
    _info, entry = await ops.create(ROOT, b"a", 0o644, os.O_RDWR, CTX)
    assert (await ops.link(entry.st_ino, ROOT, b"b", CTX)).st_nlink == 2
    assert await errno_of(ops.rename(ROOT, b"a", ROOT, b"b", 1, CTX)) == errno.EEXIST
    await ops.rename(ROOT, b"a", ROOT, b"c", 0, CTX)
    await ops.unlink(ROOT, b"b", CTX)
    await ops.mkdir(ROOT, b"d", 0o755, CTX)
    await ops.rmdir(ROOT, b"d", CTX)
    assert list(view.nodes[ROOT].children) == [b"c"]


async def test_extended_attributes(ops: Operations) -> None:
    assert await errno_of(ops.getxattr(ROOT, b"user.a", CTX)) == errno.ENODATA
    await ops.setxattr(ROOT, b"user.a", b"1", CTX)
    assert await ops.getxattr(ROOT, b"user.a", CTX) == b"1"
    assert list(await ops.listxattr(ROOT, CTX)) == [b"user.a"]
    await ops.removexattr(ROOT, b"user.a", CTX)
    assert await errno_of(ops.removexattr(ROOT, b"user.a", CTX)) == errno.ENODATA


async def test_setattr_hands_on_only_what_was_asked_for(view: FakeView, ops: Operations) -> None:
    class Fields:
        update_mode = update_uid = update_gid = update_ctime = update_atime = False
        update_size = update_mtime = True

    _info, entry = await ops.create(ROOT, b"f", 0o600, os.O_RDWR, CTX)
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode, wanted.st_uid = stat.S_IFREG | 0o777, 7
    wanted.st_size, wanted.st_mtime_ns = 10, 123456789
    changed = await ops.setattr(entry.st_ino, wanted, Fields(), None, CTX)  # type: ignore[arg-type]
    assert (changed.st_size, changed.st_mtime_ns) == (10, 123456789)
    assert (changed.st_mode, changed.st_uid) == (stat.S_IFREG | 0o600, 1000)


async def test_readdir_stops_when_the_reply_is_full_and_goes_on_from_its_cookie(
    ops: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"a", b"b", b"c"):
        await ops.mkdir(ROOT, name, 0o755, CTX)
    sent: list[tuple[bytes, int]] = []

    def fits(token: list[int], name: bytes, entry: Any, cookie: int) -> bool:
        if not token:
            return False
        token.pop()
        sent.append((name, cookie))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", fits)
    handle = await ops.opendir(ROOT, CTX)
    await ops.readdir(handle, 0, [1, 1])  # type: ignore[arg-type]
    assert [name for name, _cookie in sent] == [b"a", b"b"]
    await ops.readdir(handle, sent[-1][1], [1, 1])  # type: ignore[arg-type]
    assert [name for name, _cookie in sent] == [b"a", b"b", b"c"]
    await ops.releasedir(handle)


async def test_statfs_and_access(ops: Operations) -> None:
    data = await ops.statfs(CTX)
    assert (data.f_bsize, data.f_blocks, data.f_bfree, data.f_bavail) == (4096, 1000, 500, 400)
    assert (data.f_files, data.f_ffree, data.f_favail, data.f_namemax) == (100, 50, 50, 255)
    assert await ops.access(ROOT, os.R_OK, CTX)


async def test_every_request_is_told_at_level_debug(view: FakeView, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    ops = Operations(view.as_view())
    await ops.getattr(ROOT, CTX)
    await errno_of(ops.getattr(99, CTX))
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith("getattr(1, ")
    assert told[1].endswith(f"errno={errno.ESTALE}")
