"""The units, mount(8) and fstab under a real systemd, from the first boot to a lost power supply.

Method: one machine for all (tests/systemd/host.py), whose data lie on a file system that can lose
what was not synced. The tests build on each other's machine, not on each other's mounts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.powercut.machine import Image
from tests.systemd.host import REPOSITORY, CannotBootError, Host

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.long,
    pytest.mark.unmeasured,
    pytest.mark.program("systemd-nspawn", "nsenter", "mkfs.ext4"),
]

ENVIRONMENT = "STORE=/data/store\nMOUNTPOINT=/data/mnt\nOPTIONS=--allow-other\n"
CHECK = "dedupfs check /data/store"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    image = Image(tmp_path_factory.mktemp("disk"), "ext4", random.Random(0))
    image.mount()
    yield image
    image.remove()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("host"), image.path)
    try:
        try:
            host.prepare()
            for unit in (REPOSITORY / "systemd").glob("dedupfs*"):
                host.write(f"etc/systemd/system/{unit.name}", unit.read_text())
            host.boot()
        except (CannotBootError, AssertionError) as exc:  # nothing of ours runs in there yet
            pytest.skip(f"systemd-nspawn: {exc}")
        host.run("dedupfs init /data/store && mkdir /data/mnt /data/other")
        host.run(f"mkdir -p /etc/dedupfs && printf '{ENVIRONMENT}' > /etc/dedupfs/ckpts.env")
        yield host
    finally:
        host.remove()


@pytest.fixture
def service(host: Host) -> Iterator[Host]:
    """The machine with its service running, which is stopped and whose store is right after it."""
    host.run("systemctl start dedupfs@ckpts")
    yield host
    host.run("systemctl stop dedupfs@ckpts")
    assert host.run("systemctl is-active dedupfs@ckpts", code=3) == "inactive"
    host.run("! grep fuse.dedupfs /proc/mounts")
    host.run(CHECK)


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


def test_a_daemon_that_hangs_is_replaced_under_open_files(host: Host) -> None:
    host.write("etc/systemd/system/dedupfs@ckpts.service.d/watch.conf", "")
    host.run(
        "printf '[Service]\nWatchdogSec=12s\n' "
        "> /etc/systemd/system/dedupfs@ckpts.service.d/watch.conf && systemctl daemon-reload"
    )
    host.run("systemctl start dedupfs@ckpts")
    pid = host.show("dedupfs@ckpts", "MainPID")
    hanging = host.run(f"cat /proc/{pid}/task/*/children")
    host.run(
        "exec 3> /data/mnt/open; echo one >&3; "
        f"kill -STOP {hanging}; "
        "echo two >&3; exec 3>&-; test \"$(cat /data/mnt/open)\" = 'one\ntwo'"
    )
    assert host.run(f"cat /proc/{pid}/task/*/children") not in ("", hanging)
    assert host.show("dedupfs@ckpts", "MainPID") == pid
    host.run(
        "systemctl stop dedupfs@ckpts; rm /etc/systemd/system/dedupfs@ckpts.service.d/watch.conf; "
        "systemctl daemon-reload"
    )
    host.run(CHECK)


def test_a_service_that_is_killed_as_a_whole_is_mounted_anew(service: Host) -> None:
    service.run("echo kept > /data/mnt/file; sync /data/mnt/file")
    service.run("systemctl kill --signal=KILL dedupfs@ckpts")
    service.until("test $(systemctl show -P NRestarts dedupfs@ckpts) = 1")
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
    host.run("systemctl start dedupfs@ckpts")
    host.run("systemctl enable dedupfs@ckpts")
    host.run(
        "systemd-run --quiet --property=After=dedupfs@ckpts.service sh -c "
        "'echo closed > /data/mnt/closed; exec 3> /data/mnt/open; echo written >&3; sleep 999'"
    )
    host.until("grep written /data/mnt/open")
    host.shut_down()
    host.boot()
    host.run("systemctl start dedupfs@ckpts && grep closed /data/mnt/closed")
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
    host.run("systemctl start dedupfs@ckpts")
    sizes = host.run("cd /data/mnt && stat --format='%n %s' [0-9]*").splitlines()
    assert set(synced) <= {line.split()[0] for line in sizes if line.endswith(" 100000")}
    host.run("systemctl stop dedupfs@ckpts")
    host.run(CHECK)
