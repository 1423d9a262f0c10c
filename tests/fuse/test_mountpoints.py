"""The mount table is read as the kernel writes it."""

from pathlib import Path

import pytest

from dedupfs.errors import MountError
from dedupfs.fuse import mountpoints
from dedupfs.fuse.mountpoints import Mount

TABLE = b"""\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:39 / /mnt/a rw,nosuid - fuse.dedupfs /stores/first rw,user_id=0
41 40 0:40 / /mnt/a rw shared:7 master:2 - fuse.dedupfs /stores/second rw,user_id=0,allow_other
42 22 0:41 / /mnt/with\\040space\\134and\\012line rw - fuse.dedupfs /my\\040store rw
43 22 0:42 / /mnt/a/tmp rw - tmpfs tmpfs rw
44 22 0:43 / /mnt/\xff\xfe rw - fuse.sshfs host: rw
"""


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE)
    monkeypatch.setattr(mountpoints, "MOUNT_TABLE", path)


def test_the_topmost_mount_counts() -> None:
    assert mountpoints.mount_at(Path("/mnt/a")) == Mount(
        "0:40",
        Path("/mnt/a"),
        "fuse.dedupfs",
        "/stores/second",
        user=0,
        shared=True,
        allow_other=True,
    )
    assert mountpoints.mount_at(Path("/mnt")) is None


def test_escaped_and_undecodable_names_come_back() -> None:
    found = mountpoints.find_mount("/mnt/with space\\and\nline")
    assert found is not None
    assert found.source == "/my store"
    other = mountpoints.mount_at(Path("/mnt/\udcff\udcfe"))
    assert other is not None
    assert not other.is_ours
    assert mountpoints.find_mount("/mnt/\udcff\udcfe") is None


@pytest.mark.parametrize(
    ("path", "mountpoint"),
    [("/mnt/a/b/c", "/mnt/a"), ("/mnt/a", "/mnt/a"), ("/mnt/a/tmp/x", "/mnt/a/tmp"), ("/mnt", "/")],
)
def test_the_mount_that_a_path_lies_in(path: str, mountpoint: str) -> None:
    found = mountpoints.mount_containing(Path(path))
    assert found is not None
    assert found.mountpoint == Path(mountpoint)


def test_a_live_mount_is_not_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoints, "is_stale", lambda mount: False)
    with pytest.raises(MountError, match="already a mount of /stores/second"):
        mountpoints.clear_stale(Path("/mnt/a"))


def test_every_dead_mount_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = TABLE.splitlines(keepends=True)

    def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
        assert lazy
        del lines[max(index for index, line in enumerate(lines) if b" /mnt/a " in line)]
        mountpoints.MOUNT_TABLE.write_bytes(b"".join(lines))

    monkeypatch.setattr(mountpoints, "is_stale", lambda mount: True)
    monkeypatch.setattr(mountpoints, "unmount", unmount)
    assert mountpoints.clear_stale(Path("/mnt/a")) == 2
    assert mountpoints.clear_stale(Path("/mnt/\udcff\udcfe")) == 0
