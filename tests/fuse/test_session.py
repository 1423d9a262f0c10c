"""What keeps a mount from being made is one clear line, and nothing is left behind."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pyfuse3 = pytest.importorskip("pyfuse3")

from dedupfs.errors import MountError  # noqa: E402
from dedupfs.fuse import device, mountpoints  # noqa: E402
from dedupfs.fuse.device import MountFlags  # noqa: E402
from dedupfs.fuse.session import Session, prepare_mountpoint  # noqa: E402
from tests.device import device_for_everybody  # noqa: E402
from tests.fuse.harness import DaemonError, Daemons, is_mounted, run_code  # noqa: E402

NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def test_a_mount_point_must_be_a_directory(tmp_path: Path, store: Path) -> None:
    with pytest.raises(MountError, match="does not exist"):
        prepare_mountpoint(tmp_path / "missing", store)
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="not a directory"):
        prepare_mountpoint(tmp_path / "file", store)


def test_store_and_mount_point_must_not_lie_in_each_other(tmp_path: Path, store: Path) -> None:
    (store / "inside").mkdir()
    (tmp_path / "link").symlink_to(store / "inside")
    for mountpoint in (store, store / "inside", tmp_path, tmp_path / "link"):
        with pytest.raises(MountError, match="must not lie in each other"):
            prepare_mountpoint(mountpoint, store)


def test_a_link_to_a_directory_that_is_not_empty_will_do(tmp_path: Path, store: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "f").touch()
    (tmp_path / "link").symlink_to("mnt")
    assert prepare_mountpoint(tmp_path / "link", store) == tmp_path / "mnt"


def mount(mountpoint: Path) -> None:
    Session.mount(pyfuse3.Operations(), mountpoint, Path("/store"), MountFlags())


def test_no_device_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DEVICE", tmp_path / "fuse")
    with pytest.raises(MountError, match="modprobe fuse"):
        mount(tmp_path)


def test_a_closed_device_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DEVICE", tmp_path)  # a directory cannot be opened for writing
    with pytest.raises(MountError, match="cannot open"):
        mount(tmp_path)


def test_a_user_without_fusermount3_is_told_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fuse").touch()
    monkeypatch.setattr(device, "DEVICE", tmp_path / "fuse")
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MountError, match="install the package fuse3"):
        mount(tmp_path)


def test_what_fusermount3_says_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "helper"
    helper.write_text("#!/bin/sh\necho 'fusermount3: too many cooks' >&2\nexit 1\n")
    helper.chmod(0o755)
    monkeypatch.setattr(device, "DEVICE", tmp_path / "helper")
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    monkeypatch.setattr(shutil, "which", lambda name: str(helper))
    with pytest.raises(MountError, match=f"cannot mount on {tmp_path}: too many cooks"):
        mount(tmp_path)
    with pytest.raises(MountError, match=f"cannot unmount {tmp_path}: too many cooks"):
        mountpoints.unmount(tmp_path)


@pytest.fixture
def users_own() -> Iterator[Path]:
    """A directory of an ordinary user, and a device that ordinary users may open."""
    with tempfile.TemporaryDirectory(prefix="dedupfs-") as name, device_for_everybody():
        directory = Path(name).resolve()
        os.chown(directory, NOBODY, NOBODY)
        directory.chmod(0o755)
        yield directory


@pytest.mark.fuse
@pytest.mark.root
def test_an_ordinary_user_mounts_writes_and_unmounts(users_own: Path) -> None:
    daemons = Daemons(users_own, user=NOBODY)
    try:
        mounted = daemons.start(store="a, store\\")
        code = f"open({str(mounted.path / 'f')!r}, 'w').write('mine')"
        assert run_code(code, NOBODY).returncode == 0
        assert "PermissionError" in run_code(code, NOBODY - 1).stderr
        mount_line = mountpoints.mount_at(mounted.path)
        assert mount_line is not None
        assert mount_line.is_ours
        assert mount_line.source == str(mounted.store)
        assert mounted.end() == 0
        assert not is_mounted(mounted.path)
        again = daemons.start(store="a, store\\")
        done = run_code(f"print(open({str(again.path / 'f')!r}).read())", NOBODY)
        assert done.stdout == "mine\n"
        again.kill()
        once_more = daemons.start(store="a, store\\")
        assert "dead mount taken away" in once_more.log
    finally:
        daemons.end_all()
    assert daemons.complaints() == []


@pytest.mark.fuse
@pytest.mark.root
def test_an_ordinary_user_who_may_not_let_others_in_is_told_why(users_own: Path) -> None:
    if "\nuser_allow_other" in Path("/etc/fuse.conf").read_text():
        pytest.skip("user_allow_other is set")
    daemons = Daemons(users_own, user=NOBODY)
    with pytest.raises(DaemonError, match="user_allow_other"):
        daemons.start(allow_other=True)
