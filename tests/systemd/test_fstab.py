"""mount(8), umount(8) and /etc/fstab, by hand and by a real systemd.

Method: one machine for all (tests/systemd/host.py), whose data lie on a file system that can lose
what was not synced.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.systemd.conftest import MARKS
from tests.systemd.host import Host

pytestmark = MARKS


def test_fstab_mounts_and_umount_waits_for_the_daemon(host: Host) -> None:
    host.run(
        "echo '/data/store /data/other dedupfs "
        "view=job,allow_other,nofail,noauto,x-systemd.automount,noatime 0 0' > /etc/fstab; "
        "systemctl daemon-reload"
    )
    if Path("/dev/autofs").exists():
        host.run("systemctl start data-other.automount && ! grep fuse.dedupfs /proc/mounts")
    else:
        host.run("systemctl start data-other.mount")
    host.run("echo kept > /data/other/file && grep '/data/other fuse.dedupfs' /proc/mounts")
    host.run("umount /data/other && ! ls /data/store/run/*.sock")  # the daemon has ended
    host.run("mount /data/other && grep kept /data/other/file")
    host.until("systemctl is-active data-other.mount")  # it looks once a second when much changes
    # systemd is content when the mount is gone; the daemon is not yet.
    host.run("systemctl stop data-other.mount")
    host.until("! ls /data/store/run/*.sock")
    host.run("systemctl stop data-other.automount; echo > /etc/fstab; systemctl daemon-reload")


def test_mount_8_mounts_a_snapshot_read_only_and_names_what_it_does_not_know(host: Host) -> None:
    host.run(
        "mkdir -p /tmp/tree && echo old > /tmp/tree/f && dedupfs import /data/store /tmp/tree s"
    )
    host.run("mount -t dedupfs /data/store /data/other -o snapshot=s,ro,noexec")
    assert host.run("cat /data/other/f") == "old"
    options = host.run("findmnt --noheadings --output VFS-OPTIONS /data/other").split(",")
    assert {"ro", "noexec", "nosuid", "nodev"} <= set(options)
    host.run("! touch /data/other/g && umount /data/other")
    said = host.run("mount -t dedupfs /data/store /data/other -o frobnicate", code=1)
    assert "mount.dedupfs: unknown option 'frobnicate'" in said
    host.run("mount -s -t dedupfs /data/store /data/other -o frobnicate && umount /data/other")


def test_mount_8_takes_all_of_fstab_and_answers_what_it_cannot_do(host: Host) -> None:
    options = "view=job,log_format=json,metrics=127.0.0.1:0,user,_netdev,nofail,x-any=thing"
    host.run(f"echo '/data/store /data/other dedupfs {options} 0 0' > /etc/fstab")
    host.run("mount -a && mount -a")
    assert host.run("findmnt --noheadings --output SOURCE,FSTYPE /data/other").split() == [
        "/data/store",
        "fuse.dedupfs",
    ]
    host.run("test $(grep -c '/data/other fuse.dedupfs' /proc/mounts) = 1")
    (status,) = json.loads(host.run("dedupfs status /data/store --json"))
    assert status["metrics"].startswith("127.0.0.1:")
    assert json.loads(host.run("tail -n 1 /data/store/run/view-job.log"))["process"]
    for said in (
        host.run("mount -o remount,ro /data/other", code=1),  # by fstab: mount.dedupfs
        host.run(
            "echo > /etc/fstab; mount -o remount,ro /data/other", code=1
        ),  # mount.fuse.dedupfs
    ):
        assert said.startswith("mount.dedupfs: option 'remount': 'remount,bind' changes ro"), said
    host.run("mount -o remount,bind,ro /data/other && ! touch /data/other/new")
    host.run("mount -o remount,bind,rw /data/other && touch /data/other/new")
    host.run("umount --lazy /data/other")
    host.until("! ls /data/store/run/*.sock")
    host.run("mount -t fuse.dedupfs /data/store /data/other && ls /data/other")
    host.run("umount --force /data/other")
    host.until("! ls /data/store/run/*.sock")


@pytest.mark.skipif(Path("/sys/fs/selinux").exists(), reason="this kernel has SELinux")
def test_a_label_that_the_kernel_does_not_take_is_one_line_that_says_so(host: Host) -> None:
    label = "context=system_u:object_r:container_file_t:s0"
    said = host.run(f"mount.dedupfs /data/store /data/other -o view=job,{label}", code=32)
    assert said.count("\n") == 0
    assert "mount.dedupfs: cannot mount on /data/other: the kernel does not take context=" in said
    host.run("! grep /data/other /proc/mounts")
    # mount(8) leaves it out where it sees no SELinux: libmount, hook_selinux.c.
    host.run(f"mount -t dedupfs /data/store /data/other -o view=job,{label}")
    host.run("umount /data/other")
