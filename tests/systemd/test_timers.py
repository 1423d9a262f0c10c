"""The timers of a store: they start gc and scrub, which may write into that store alone.

Method: one machine for all (tests/systemd/host.py). The store is one of its own, on a disk that is
not mounted, below a name that systemd has to escape.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.systemd.conftest import MARKS
from tests.systemd.host import Host

pytestmark = MARKS
AT_ONCE = "[Timer]\nOnCalendar=\nOnActiveSec=10ms\nRandomizedDelaySec=0\nAccuracySec=1ms\n"
STORE = "/srv/timed/my store-1%h"


@pytest.fixture(scope="module")
def instance(machine: Host) -> Iterator[str]:
    """The escaped path of a store, whose disk is in /etc/fstab and not mounted."""
    host = machine
    host.run("mkdir -p /data/timed /srv/timed && mount --bind /data/timed /srv/timed")
    host.run(f"mkdir -p /run/tree && echo old > /run/tree/f && dedupfs init '{STORE}'")
    host.run(f"dedupfs import '{STORE}' /run/tree g")
    host.run(f"dedupfs rm --no-gc '{STORE}' g && umount /srv/timed")
    host.run("echo '/data/timed /srv/timed none bind,noauto' > /etc/fstab; systemctl daemon-reload")
    yield host.run(f"systemd-escape --path '{STORE}'")
    host.run("umount /srv/timed; echo > /etc/fstab; systemctl reset-failed; rm -r /data/timed")
    host.run("systemctl daemon-reload")


def test_timers_start_gc_and_scrub_in_their_sandboxes(host: Host, instance: str) -> None:
    for name in ("gc", "scrub"):
        unit = f"dedupfs-{name}@{instance}"
        drop_ins = f"/run/systemd/system/{unit}.timer.d"
        host.put(f"{drop_ins}/now.conf", AT_ONCE)
        host.run(f"systemctl daemon-reload && systemctl start '{unit}.timer'")
        host.until(f"test -n \"$(systemctl show -P ConditionTimestamp '{unit}.service')\"")
        assert host.show(f"{unit}.service", "ConditionResult") == "yes"  # its disk is there now
        host.until(f"test -n \"$(systemctl show -P ExecMainExitTimestamp '{unit}.service')\"")
        assert host.show(f"{unit}.service", "Result") == "success"
        host.run(f"systemctl stop '{unit}.timer'; rm -r '{drop_ins}'; systemctl daemon-reload")
        host.run(f"systemctl start '{unit}.timer'")
        assert f"{unit}.timer" in host.run("systemctl list-timers --no-pager --full")
        assert host.show(f"{unit}.timer", "NextElapseUSecRealtime")
        host.run(f"systemctl stop '{unit}.timer'")
    host.run(f"dedupfs check '{STORE}'")


def test_damage_is_a_unit_that_failed_and_no_store_is_none(host: Host, instance: str) -> None:
    unit = f"dedupfs-scrub@{instance}"
    host.run("systemctl start srv-timed.mount")
    host.run(f"dedupfs import '{STORE}' /run/tree h")
    host.run(
        f"cd '{STORE}'/packs && pack=$(find . -name '*.pack' -size +0 | sort | tail -n 1) && "
        "printf '\\377\\377' | dd of=$pack bs=1 seek=70 conv=notrunc"
    )
    host.run(f"systemctl start '{unit}'", code=1)
    assert host.show(f"{unit}", "ExecMainStatus") == "3"
    assert "damage" in host.run(f"journalctl --boot --output=cat --unit '{unit}'")
    host.run("systemctl start dedupfs-gc@srv-none.service")
    assert host.show("dedupfs-gc@srv-none.service", "ConditionResult") == "no"
