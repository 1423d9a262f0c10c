"""The end of a machine: a shutdown loses nothing, a lost power supply nothing that was synced.

Method: one machine for all (tests/systemd/host.py), whose data lie on a file system that can lose
what was not synced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.powercut.machine import Image
from tests.systemd.conftest import CHECK, MARKS
from tests.systemd.host import Host

pytestmark = MARKS


# Writes on while it is told to end, and last of all when the mount's service has ended (or not).
WRITER = """
last() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        if ! systemctl --quiet is-active dedupfs@ckpts; then
            while grep -q /data/mnt /proc/mounts && test $((waits += 1)) -le 1000; do :; done
            break
        fi
    done
    echo last >&3
    exit
}
echo closed > /data/mnt/closed
exec 3> /data/mnt/open
trap last TERM
echo written >&3
while :; do sleep 0.1; done
"""
# Says the checksum of each file that is synced: the journal has small ones, larger ones are staged.
# Each commit makes chunks of them, a snapshot and a new journal; its name is said, too.
SAVER = """
cd /data/mnt || exit
i=0
while :; do
    for size in 1000 100000 1000000 6000000; do
        head -c $size /dev/urandom > /run/made || exit
        cp /run/made $i && sync $i . || exit 0
        (cd /run && sha256sum made) | sed "s/made/$i/"
        i=$((i + 1))
    done
    dedupfs commit /data/mnt snapshot$i > /dev/null || exit 0
    echo snapshot$i
done
"""
LINES = 4 * 5 + 1
DISK = "STORE=/srv/disk/store\nMOUNTPOINT=/data/other\n"


@pytest.fixture
def started_at_boot(host: Host) -> Iterator[Callable[[str], None]]:
    """Have the target of the machine want a service, as ``enable`` does; in the end, none."""

    def want(service: str) -> None:
        host.run(f"systemctl add-wants dedupfs-test.target {service}")

    yield want
    if host.nspawn is not None:
        host.run("systemctl stop 'dedupfs@*'; echo > /etc/fstab")
        host.run("rm /etc/systemd/system/dedupfs-test.target.wants/*; systemctl daemon-reload")


def test_a_shutdown_ends_what_writes_then_the_mount_then_the_disk_below_it(
    host: Host, started_at_boot: Callable[[str], None]
) -> None:
    host.run("mkdir -p /data/disk /srv/disk && echo '/data/disk /srv/disk none bind' > /etc/fstab")
    host.put("/etc/dedupfs/disk.env", DISK)
    host.run("systemctl daemon-reload && systemctl start srv-disk.mount")
    host.run("dedupfs init /srv/disk/store && systemctl start dedupfs@disk dedupfs@ckpts")
    host.run("echo kept > /data/other/file")
    started_at_boot("dedupfs@ckpts dedupfs@disk")
    host.put("/run/writer", WRITER)
    host.run("systemd-run --quiet --property=After=dedupfs@ckpts.service sh /run/writer")
    host.until("grep written /data/mnt/open")
    host.shut_down()
    host.boot()
    host.until("systemctl is-active dedupfs@ckpts dedupfs@disk")
    host.run("grep closed /data/mnt/closed && test \"$(cat /data/mnt/open)\" = 'written\nlast'")
    host.run("grep kept /data/other/file && systemctl stop dedupfs@disk")
    said = host.run("journalctl --boot=-1 --output=cat _PID=1")
    assert "Unmounted srv-disk.mount" in said
    assert "Failed unmounting" not in said
    host.run("dedupfs check /srv/disk/store")


def test_a_lost_power_supply_loses_nothing_that_was_synced(
    host: Host, image: Image, started_at_boot: Callable[[str], None]
) -> None:
    started_at_boot("dedupfs@ckpts")
    host.put("/run/saver", SAVER)
    host.run("systemctl start dedupfs@ckpts")
    with host.start("sh /run/saver") as writer:
        assert writer.stdout is not None
        # The last ones are of a commit, whose chunks nothing but itself has synced, and of a file
        # in a journal that has just begun.
        synced = [writer.stdout.readline().strip() for _ in range(LINES)]
        image.cut()
        host.lose_power()
        synced += [line.strip() for line in writer.stdout if line.endswith("\n")]
    image.restart()
    host.boot()
    host.until("systemctl is-active dedupfs@ckpts")
    found = host.run("cd /data/mnt && sha256sum [0-9]* || true; ls").splitlines()
    assert set(synced) <= set(found), sorted(set(synced) - set(found))
    host.run(f"systemctl stop dedupfs@ckpts && {CHECK}")
