"""The timers of a store: they start gc and scrub, which may write into that store alone.

Method: one machine for all (tests/systemd/host.py), whose data lie on a file system that can lose
what was not synced.
"""

from __future__ import annotations

from tests.systemd.conftest import CHECK, MARKS
from tests.systemd.host import Host

pytestmark = MARKS
AT_ONCE = "[Timer]\nOnCalendar=\nOnActiveSec=10ms\nRandomizedDelaySec=0\nAccuracySec=1ms\n"


def test_timers_start_gc_and_scrub_in_their_sandboxes(host: Host) -> None:
    host.run(
        "mkdir -p /run/tree && echo old > /run/tree/f && dedupfs import /data/store /run/tree g"
    )
    host.run("dedupfs rm --no-gc /data/store g")
    for name in ("gc", "scrub"):
        unit = f"dedupfs-{name}@data-store"
        drop_ins = f"/run/systemd/system/{unit}.timer.d"
        host.put(f"{drop_ins}/now.conf", AT_ONCE)
        host.run(f"systemctl daemon-reload && systemctl start '{unit}.timer'")
        host.until(f"test -n \"$(systemctl show -P ExecMainExitTimestamp '{unit}.service')\"")
        assert host.show(f"{unit}.service", "Result") == "success"
        host.run(f"systemctl stop '{unit}.timer'; rm -r '{drop_ins}'; systemctl daemon-reload")
        host.run(f"systemctl start '{unit}.timer'")
        assert f"{unit}.timer" in host.run("systemctl list-timers --no-pager")
        assert host.show(f"{unit}.timer", "NextElapseUSecRealtime")
        host.run(f"systemctl stop '{unit}.timer'")
    host.run(CHECK)
