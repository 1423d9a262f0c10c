"""The units, mount(8) and fstab under a real systemd, from the first boot to a lost power supply.

Method: one machine for all (tests/systemd/host.py), whose data lie on a file system that can lose
what was not synced. The tests build on each other's machine, not on each other's mounts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.powercut.machine import Image
from tests.systemd.conftest import CHECK, PROGRAMS
from tests.systemd.host import Host

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.unmeasured,
    pytest.mark.program(*PROGRAMS),
]

DROP_INS = "/run/systemd/system/dedupfs@ckpts.service.d"


def test_a_service_is_started_when_its_mount_answers_and_says_what_it_does(service: Host) -> None:
    service.run("grep '/data/mnt fuse.dedupfs' /proc/mounts")
    status = service.show("dedupfs@ckpts", "StatusText")
    assert status.startswith("/data/store on /data/mnt, answered by process ")
    service.run("echo kept > /data/mnt/file")
    service.run("systemctl restart dedupfs@ckpts && grep kept /data/mnt/file")


def test_a_sandboxed_service_has_the_mount_namespace_of_all(service: Host) -> None:
    pid = service.show("dedupfs@ckpts", "MainPID")
    assert service.run(f"readlink /proc/{pid}/ns/mnt") == service.run("readlink /proc/1/ns/mnt")
    assert service.run(f"grep Seccomp: /proc/{pid}/status").split() == ["Seccomp:", "2"]
    assert service.run(f"grep NoNewPrivs: /proc/{pid}/status").split() == ["NoNewPrivs:", "1"]


def test_a_killed_daemon_is_replaced_under_open_files(service: Host) -> None:
    pid = service.show("dedupfs@ckpts", "MainPID")
    service.run(
        "exec 3> /data/mnt/open; echo one >&3; "
        f"kill -KILL $(cat /proc/{pid}/task/*/children); "
        "echo two >&3; exec 3>&-; test \"$(cat /data/mnt/open)\" = 'one\ntwo'"
    )
    assert service.show("dedupfs@ckpts", "MainPID") == pid
    assert service.show("dedupfs@ckpts", "NRestarts") == "0"


@pytest.fixture
def watched(host: Host) -> Iterator[Callable[[int], str]]:
    """Start the service with so many seconds of patience; return its main process."""

    def start(watchdog_s: int) -> str:
        host.run(
            f"mkdir -p {DROP_INS} && printf '[Service]\nWatchdogSec={watchdog_s}s\n' "
            f"> {DROP_INS}/watch.conf && systemctl daemon-reload"
        )
        host.run("systemctl reset-failed; systemctl start dedupfs@ckpts")
        return host.show("dedupfs@ckpts", "MainPID")

    yield start
    host.run(f"systemctl stop dedupfs@ckpts; rm -r {DROP_INS}; systemctl daemon-reload")
    host.run(CHECK)


def test_a_daemon_that_hangs_is_replaced_under_open_files(
    host: Host, watched: Callable[[int], str]
) -> None:
    pid = watched(12)
    hanging = host.run(f"cat /proc/{pid}/task/*/children")
    host.run(
        "exec 3> /data/mnt/open; echo one >&3; "
        f"kill -STOP {hanging}; "
        "echo two >&3; exec 3>&-; test \"$(cat /data/mnt/open)\" = 'one\ntwo'"
    )
    assert host.run(f"cat /proc/{pid}/task/*/children") not in ("", hanging)
    assert host.show("dedupfs@ckpts", "MainPID") == pid


def test_a_supervisor_that_hangs_is_ended_and_its_view_mounted_anew(
    host: Host, watched: Callable[[int], str]
) -> None:
    pid = watched(10)
    host.run(f"echo kept > /data/mnt/file; sync /data/mnt/file; kill -STOP {pid}")
    host.until("test $(systemctl show -P NRestarts dedupfs@ckpts) -ge 1")
    host.until("systemctl is-active dedupfs@ckpts")
    host.run("grep kept /data/mnt/file && echo more > /data/mnt/file")
    assert host.show("dedupfs@ckpts", "MainPID") != pid
    assert "Watchdog timeout" in host.run("journalctl --boot --unit dedupfs@ckpts")


def test_a_service_that_is_killed_as_a_whole_is_mounted_anew(service: Host) -> None:
    service.run("echo kept > /data/mnt/file; sync /data/mnt/file")
    service.run("systemctl kill --signal=KILL dedupfs@ckpts")
    service.until("test $(systemctl show -P NRestarts dedupfs@ckpts) -ge 1")
    service.until("systemctl is-active dedupfs@ckpts")
    service.run("grep kept /data/mnt/file && echo more > /data/mnt/file")


def test_a_reload_is_an_upgrade_under_open_files(service: Host) -> None:
    pid = service.show("dedupfs@ckpts", "MainPID")
    before = service.run(f"cat /proc/{pid}/task/*/children")
    service.run(
        "exec 3> /data/mnt/open; echo one >&3; systemctl reload dedupfs@ckpts; "
        "echo two >&3; exec 3>&-; test \"$(cat /data/mnt/open)\" = 'one\ntwo'"
    )
    service.until(f"pgrep --parent {pid} | grep -vx {before}")
    service.until("systemctl is-active dedupfs@ckpts")
    assert service.show("dedupfs@ckpts", "MainPID") == pid


def test_a_store_that_is_not_there_is_not_made_in_its_place(host: Host) -> None:
    host.run("printf 'STORE=/data/none\nMOUNTPOINT=/data/mnt\n' > /etc/dedupfs/none.env")
    host.run("systemctl start dedupfs@none", code=1)
    host.run("systemctl stop dedupfs@none; ! test -e /data/none")
    assert "no store in /data/none" in host.journal()


def test_gc_and_scrub_run_from_their_timers_units(host: Host) -> None:
    for name in ("gc", "scrub"):
        host.run(f"systemctl start 'dedupfs-{name}@data-store.service'")
        host.run(f"systemctl start 'dedupfs-{name}@data-store.timer'")
        assert host.show(f"dedupfs-{name}@data-store.timer", "NextElapseUSecRealtime")


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
    # systemd is content when the mount is gone; the daemon is not yet.
    host.run("systemctl stop data-other.mount")
    host.until("! ls /data/store/run/*.sock")
    host.run("systemctl stop data-other.automount; echo > /etc/fstab; systemctl daemon-reload")
    host.run(CHECK)


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


def test_a_shutdown_loses_nothing_and_a_lost_power_supply_nothing_that_was_synced(
    host: Host, image: Image
) -> None:
    host.run("systemctl add-wants dedupfs-test.target dedupfs@ckpts")  # what `enable` does
    host.run("systemctl start dedupfs@ckpts")
    host.run(
        "systemd-run --quiet --property=After=dedupfs@ckpts.service sh -c "
        "'echo closed > /data/mnt/closed; exec 3> /data/mnt/open; echo written >&3; sleep 999'"
    )
    host.until("grep written /data/mnt/open")
    host.shut_down()
    host.boot()
    host.until("systemctl is-active dedupfs@ckpts")
    host.run("grep closed /data/mnt/closed")
    host.run("grep written /data/mnt/open")
    with host.start(
        "for i in $(seq 100000); do head -c 100000 /dev/urandom > /data/mnt/$i || exit 0; "
        "sync /data/mnt/$i /data/mnt || exit 0; echo $i; done"
    ) as writer:
        assert writer.stdout is not None
        synced = [writer.stdout.readline().strip() for _ in range(20)]
        image.cut()
        host.lose_power()
        synced += [line.strip() for line in writer.stdout if line.endswith("\n")]
    image.restart()
    host.boot()
    host.until("systemctl is-active dedupfs@ckpts")
    sizes = host.run("cd /data/mnt && stat --format='%n %s' [0-9]*").splitlines()
    assert set(synced) <= {line.split()[0] for line in sizes if line.endswith(" 100000")}
    host.run("systemctl stop dedupfs@ckpts")
    host.run(CHECK)
