"""The end of a machine: a shutdown loses nothing, a lost power supply nothing that was synced.

Method: one machine for all (tests/systemd/host.py), whose data lie on a file system that can lose
what was not synced.
"""

from __future__ import annotations

from tests.powercut.machine import Image
from tests.systemd.conftest import CHECK, MARKS
from tests.systemd.host import Host

pytestmark = MARKS


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
