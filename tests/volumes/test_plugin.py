"""The volume plugin, asked as Docker asks it: what it makes, mounts, counts, keeps and refuses.

Method: the real program in a process of its own, real mounts, requests over its socket.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dedupfs.fuse.mountpoints import mount_at
from tests.fuse.harness import eventually
from tests.volumes.conftest import Plugin

pytestmark = pytest.mark.fuse


def mounted(plugin: Plugin, name: str, user: str = "one") -> Path:
    return Path(plugin.ask("Mount", Name=name, ID=user)["Mountpoint"])


def rows(plugin: Plugin) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(plugin.dedupfs("view", "list", plugin.store, "--json"))
    return found


def views(plugin: Plugin) -> set[str]:
    return {row["name"] for row in rows(plugin)}


def nobody_has_a_view(plugin: Plugin) -> bool:
    """Wait for daemons whose mounts have gone: a plugin does for a second (mounts.END_S_MAX)."""
    return eventually(lambda: not any(row["pid"] for row in rows(plugin)))


def filled(directory: Path) -> Path:
    """Leave no room in a small file system; return the file that takes it."""
    path = directory / "ballast"
    room = os.statvfs(directory)
    path.write_bytes(bytes(room.f_bavail * room.f_frsize))
    return path


def test_a_volume_is_mounted_as_long_as_it_has_users(plugin: Plugin) -> None:
    assert plugin.ask("/Plugin.Activate") == {"Implements": ["VolumeDriver"]}
    assert plugin.ask("Capabilities") == {"Capabilities": {"Scope": "local"}}
    plugin.ask("Create", Name="job", Opts={"snapshot": "base"})
    plugin.ask("Create", Name="job", Opts={"snapshot": "base"})  # the same again is no failure
    assert "other options" in plugin.refused("Create", Name="job", Opts={})
    assert plugin.ask("Path", Name="job")["Mountpoint"] == ""
    place = mounted(plugin, "job")
    assert (place / "file").read_bytes() == b"from the snapshot\n"
    assert mounted(plugin, "job", "two") == place
    assert mounted(plugin, "job", "two") == place
    (place / "new").write_bytes(b"kept")
    assert plugin.ask("Path", Name="job")["Mountpoint"] == str(place)
    assert plugin.ask("Get", Name="job")["Volume"]["Status"]["users"] == 2
    assert "in use by 2 container" in plugin.refused("Remove", Name="job")
    plugin.ask("Unmount", Name="job", ID="one")
    plugin.ask("Unmount", Name="job", ID="one")  # whoever is gone may go again
    assert mount_at(place) is not None
    plugin.ask("Unmount", Name="job", ID="two")
    assert mount_at(place) is None
    assert (mounted(plugin, "job") / "new").read_bytes() == b"kept"
    plugin.ask("Unmount", Name="job", ID="one")
    assert views(plugin) == {"job"}
    plugin.ask("Remove", Name="job")
    assert views(plugin) == set()
    assert plugin.ask("List")["Volumes"] == []
    assert not place.exists()
    assert "no volume 'job'" in plugin.refused("Get", Name="job")


def test_a_view_that_was_named_stays_when_its_volume_goes(plugin: Plugin) -> None:
    plugin.ask("Create", Name="a", Opts={"snapshot": "base", "view": "mine"})
    assert "volume 'a'" in plugin.refused("Create", Name="b", Opts={"view": "mine"})
    (mounted(plugin, "a") / "new").write_bytes(b"kept")
    plugin.ask("Unmount", Name="a", ID="one")
    plugin.ask("Remove", Name="a")
    assert "say view=mine" in plugin.refused("Create", Name="mine")
    plugin.ask("Create", Name="b", Opts={"view": "mine"})
    assert (mounted(plugin, "b") / "new").read_bytes() == b"kept"
    plugin.ask("Unmount", Name="b", ID="one")
    assert nobody_has_a_view(plugin)
    plugin.dedupfs("view", "rm", plugin.store, "mine")
    assert "is gone" in plugin.refused("Mount", Name="b", ID="one")
    plugin.ask("Remove", Name="b")


def test_ephemeral_and_read_only_volumes_leave_nothing(plugin: Plugin) -> None:
    plugin.ask("Create", Name="e", Opts={"snapshot": "base", "ephemeral": "", "limit": "1MiB"})
    plugin.ask("Create", Name="r", Opts={"snapshot": "base", "ro": "true"})
    place = mounted(plugin, "e")
    (place / "new").write_bytes(b"not kept")
    (row,) = rows(plugin)
    assert row["limit_bytes"] == 1 << 20
    with pytest.raises(OSError, match="Read-only"):
        (mounted(plugin, "r") / "new").write_bytes(b"")
    for name in ("e", "r"):
        plugin.ask("Unmount", Name=name, ID="one")
    assert os.listdir(mounted(plugin, "e")) == ["file", "large"]
    plugin.ask("Unmount", Name="e", ID="one")
    assert eventually(lambda: views(plugin) == set())  # its daemon removes it, perhaps later


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_mounts_and_their_users_outlive_the_plugin(plugin: Plugin, how: signal.Signals) -> None:
    plugin.ask("Create", Name="job", Opts={"snapshot": "base"})
    plugin.ask("Create", Name="gone", Opts={"ro": "1"})
    place = mounted(plugin, "job")
    gone = mounted(plugin, "gone")
    with (place / "open").open("wb", buffering=0) as file:
        file.write(b"before")
        plugin.stop(how)
        plugin.dedupfs("umount", gone)  # as a reboot would
        file.write(b" between")
        plugin.start()
        assert mounted(plugin, "job", "two") == place
        file.write(b" after")
    plugin.ask("Unmount", Name="job", ID="one")
    assert (place / "open").read_bytes() == b"before between after"
    plugin.ask("Unmount", Name="job", ID="two")
    assert mount_at(place) is None
    assert plugin.ask("Get", Name="gone")["Volume"]["Status"]["users"] == 0
    plugin.ask("Remove", Name="gone")


def test_killed_workers_are_replaced_and_none_outlives_its_plugin(plugin: Plugin) -> None:
    plugin.ask("Create", Name="job", Opts={"snapshot": "base"})
    place = mounted(plugin, "job")
    (workers,) = plugin.children()
    end = os.pidfd_open(workers)
    os.kill(workers, signal.SIGKILL)
    assert select.select([end], [], [], 60)[0]
    os.close(end)
    plugin.ask("Unmount", Name="job", ID="one")
    assert mount_at(place) is None
    assert mounted(plugin, "job") == place
    (workers,) = plugin.children()
    end = os.pidfd_open(workers)
    plugin.stop(signal.SIGKILL)
    assert select.select([end], [], [], 60)[0]
    os.close(end)
    plugin.start()
    assert (place / "file").read_bytes() == b"from the snapshot\n"
    plugin.ask("Unmount", Name="job", ID="one")
    assert mount_at(place) is None


def test_a_dead_mount_is_mounted_again(plugin: Plugin) -> None:
    plugin.ask("Create", Name="job", Opts={"snapshot": "base"})
    place = mounted(plugin, "job")
    (row,) = rows(plugin)
    supervisor = int(Path(f"/proc/{row['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    ends = [os.pidfd_open(pid) for pid in (supervisor, row["pid"])]
    for end in ends:
        signal.pidfd_send_signal(end, signal.SIGKILL)
    for end in ends:
        os.close(end)
    assert (mounted(plugin, "job", "two") / "file").read_bytes() == b"from the snapshot\n"
    assert mount_at(place) is not None
    plugin.ask("Unmount", Name="job", ID="two")


@pytest.mark.root
@pytest.mark.program("mount", "umount")
def test_a_full_disk_keeps_no_volume_mounted_and_no_plugin_from_starting(plugin: Plugin) -> None:
    plugin.ask("List")
    plugin.stop()
    options = ["-t", "tmpfs", "-o", "size=64k,mode=711", "none", str(plugin.state)]
    subprocess.run(["mount", *options], check=True, timeout=60)
    try:
        plugin.start()
        plugin.ask("Create", Name="job", Opts={"snapshot": "base"})
        place = mounted(plugin, "job")
        mounted(plugin, "job", "two")
        ballast = filled(plugin.state)
        (place / "new").write_bytes(b"kept")
        assert "No space left" in plugin.refused("Unmount", Name="job", ID="two")
        assert mounted(plugin, "job", "two") == place  # which is written down already
        plugin.stop(signal.SIGKILL)
        plugin.dedupfs("umount", place)
        plugin.start()
        assert plugin.ask("Path", Name="job")["Mountpoint"] == ""
        assert "No space left" in plugin.refused("Mount", Name="job", ID="one")
        assert mount_at(place) is None
        ballast.unlink()
        assert (mounted(plugin, "job") / "new").read_bytes() == b"kept"
        filled(plugin.state)
        plugin.ask("Unmount", Name="job", ID="one")
        assert mount_at(place) is None
        assert "No space left" in plugin.refused("Remove", Name="job")
        ballast.unlink()
        plugin.ask("Remove", Name="job")
        plugin.stop()
    finally:
        subprocess.run(["umount", "--lazy", plugin.state], check=True, timeout=60)
    plugin.start()
    assert plugin.ask("List")["Volumes"] == []


@pytest.mark.root
@pytest.mark.skipif(Path("/sys/fs/selinux/enforce").exists(), reason="would be taken")
def test_a_label_of_selinux_is_the_kernels_to_judge(plugin: Plugin) -> None:
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    plugin.ask("Create", Name="job", Opts={"snapshot": "base", "context": label})
    said = plugin.refused("Mount", Name="job", ID="one")
    assert "cannot mount" in said  # this kernel knows no labels
    assert plugin.ask("Get", Name="job")["Volume"]["Status"]["users"] == 0
    plugin.ask("Remove", Name="job")


@pytest.mark.root
@pytest.mark.program("unshare", "sh")
def test_a_copy_of_a_mount_in_some_mount_namespace_does_not_keep_its_view(plugin: Plugin) -> None:
    plugin.ask("Create", Name="job", Opts={"snapshot": "base"})
    place = mounted(plugin, "job")
    keeper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read end"]
    with subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # from now on it has the copy, as a container given all of / has
        with (place / "mapped").open("w+b") as file:
            file.truncate(4096)
            with mmap.mmap(file.fileno(), 4096) as mapped:
                mapped[:4] = b"kept"
        plugin.ask("Unmount", Name="job", ID="one")
        assert mount_at(place) is None
        assert (mounted(plugin, "job") / "mapped").read_bytes()[:4] == b"kept"
        plugin.ask("Unmount", Name="job", ID="one")
        plugin.ask("Remove", Name="job")
        assert process.poll() is None
        process.stdin.close()
    assert views(plugin) == set()


def test_many_at_once_end_with_what_one_after_the_other_would(plugin: Plugin) -> None:
    names = [f"job{number}" for number in range(2)]
    users = [f"user{number}" for number in range(3)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: plugin.ask("Create", Name=name, Opts={"ephemeral": ""}), names))
        pairs = [(name, user) for name in names for user in users]
        places = set(pool.map(lambda pair: mounted(plugin, *pair), pairs))
        assert len(places) == len(names)
        found = plugin.ask("List")["Volumes"]
        assert [row["Status"]["users"] for row in found] == [len(users)] * len(names)
        list(pool.map(lambda pair: plugin.ask("Unmount", Name=pair[0], ID=pair[1]), pairs))
        list(pool.map(lambda name: plugin.ask("Remove", Name=name), names))
    assert plugin.ask("List")["Volumes"] == []


def test_what_is_no_volume_is_refused_in_one_line_and_makes_nothing(plugin: Plugin) -> None:
    for name in ("", "..", "a/b", "../../etc", "a\nb", "x" * 256, "-x", "a\0b", "é"):
        assert "is no volume name" in plugin.refused("Create", Name=name)
        assert "no volume" in plugin.refused("Mount", Name=name, ID="one")
    for options in (
        {"snapshot": "missing"},
        {"snapshot": "../base"},
        {"store": "/etc"},
        {"view": "a", "ephemeral": ""},
        {"view": "../a"},
        {"view": "ephemeral-a"},
        {"ro": "perhaps"},
        {"ro": "", "limit": "1G"},
        {"limit": "9" * 4000},
        {"limit": "-1"},
        {"view": "x" * 5000},
        {"device": "/dev/sda"},
        {"context": 'label",dev'},
    ):
        plugin.refused("Create", Name="job", Opts=options)
    plugin.ask("Create", Name="job", Opts={"ro": ""})
    for user in ("", "x" * 257, "a\nb"):
        assert "needs an ID" in plugin.refused("Mount", Name="job", ID=user)
    assert [row["Name"] for row in plugin.ask("List")["Volumes"]] == ["job"]
    assert views(plugin) == set()
    assert not (plugin.state / "mounts").exists()
    plugin.ask("Remove", Name="job")
    assert plugin.answer("Create", b"{")[0] == 400
    assert plugin.answer("Create", b'{"Name": 1}')[0] == 400
    assert plugin.answer("Create", b"[" * 60_000)[0] == 400
    assert plugin.answer("Create", b"\xff\xfe")[0] == 400
    assert plugin.answer("/VolumeDriver.Format", b"{}")[0] == 404
    assert plugin.answer("List", b"{}", **{"Content-Length": "-1"})[0] == 411
    assert plugin.answer("List", b"{}", **{"Content-Length": str(1 << 40)})[0] == 413
    assert plugin.ask("List") == {"Volumes": [], "Err": ""}


def test_who_still_sends_what_is_refused_hears_why(plugin: Plugin) -> None:
    ask = b"POST /VolumeDriver.List HTTP/1.1\r\nContent-Length: %b\r\n\r\n"
    for length, code in ((b"-1", b"411"), (b"%d" % (1 << 40), b"413")):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(plugin.socket_path))
            client.sendall(ask % length)
            assert client.recv(1, socket.MSG_PEEK), "it has answered, and reads no further"
            for _ in range(8):
                client.sendall(b" " * 4096)
            client.shutdown(socket.SHUT_WR)
            said = client.makefile("rb").read()
        assert said.split()[1] == code, said


@pytest.mark.root
@pytest.mark.program("/usr/bin/python3")
def test_nobody_but_root_and_its_own_user_is_listened_to(plugin: Plugin) -> None:
    assert plugin.ask("List")["Volumes"] == []
    plugin.socket_directory.chmod(0o755)
    plugin.socket_path.chmod(0o666)
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect(sys.argv[1])\n"
        "s.sendall(b'POST /VolumeDriver.List HTTP/1.1\\r\\nContent-Length: 2\\r\\n\\r\\n{}')\n"
        "print(s.recv(100))\n"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", code, plugin.socket_path],
        user=65534,
        group=65534,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout in ("b''\n", ""), done  # closed, or reset with what it had said unread
    assert "Permission" not in done.stderr, done
    assert plugin.ask("List")["Volumes"] == []
