"""The unit of a mount under a real systemd: started, upgraded, killed, hung, stopped.

Method: one machine for all (tests/systemd/host.py), whose data lie on a file system that can lose
what was not synced. The tests build on each other's machine, not on each other's mounts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.systemd.conftest import ENVIRONMENT, MARKS, open_files
from tests.systemd.host import INSTALLED, Host

pytestmark = MARKS

DROP_INS = "/run/systemd/system/dedupfs@ckpts.service.d"


def test_a_service_is_started_when_its_mount_answers_and_says_what_it_does(service: Host) -> None:
    service.run("grep '/data/mnt fuse.dedupfs' /proc/mounts")
    status = service.show("dedupfs@ckpts", "StatusText")
    assert status.startswith("/data/store on /data/mnt, answered by process ")
    assert service.show("dedupfs@ckpts", "WatchdogUSec") == "3min"
    service.run("echo kept > /data/mnt/file")
    service.run("systemctl restart dedupfs@ckpts && grep kept /data/mnt/file")


def test_a_sandboxed_service_has_the_mount_namespace_of_all(service: Host) -> None:
    pid = service.show("dedupfs@ckpts", "MainPID")
    assert service.run(f"readlink /proc/{pid}/ns/mnt") == service.run("readlink /proc/1/ns/mnt")
    assert service.run(f"grep Seccomp: /proc/{pid}/status").split() == ["Seccomp:", "2"]
    assert service.run(f"grep NoNewPrivs: /proc/{pid}/status").split() == ["NoNewPrivs:", "1"]
    for process in (pid, service.run(f"cat /proc/{pid}/task/*/children")):
        assert open_files(service, process) > 1024  # systemd-system.conf(5), DefaultLimitNOFILE=


def test_a_killed_daemon_is_replaced_under_open_files(service: Host) -> None:
    pid = service.show("dedupfs@ckpts", "MainPID")
    service.run(
        "exec 3> /data/mnt/open; echo one >&3; "
        f"kill -KILL $(cat /proc/{pid}/task/*/children); "
        "echo two >&3; exec 3>&-; test \"$(cat /data/mnt/open)\" = 'one\ntwo'"
    )
    assert service.show("dedupfs@ckpts", "MainPID") == pid
    assert service.show("dedupfs@ckpts", "NRestarts") == "0"


# Python runs it at its start. A daemon that has put its view away then works on for so many
# seconds, as if there were more of it.
SLOW_END = """
import os, time
exit_at_once = os._exit

def exit_slowly(code):
    until_s = time.monotonic() + float(os.environ["SLOW_END_S"])
    while time.monotonic() < until_s:
        sum(range(100_000))
        time.sleep(0.02)
    exit_at_once(code)

if "SLOW_END_S" in os.environ:
    os._exit = exit_slowly
"""


@pytest.fixture
def impatient(host: Host) -> Iterator[Callable[[str], str]]:
    """Start the service with another limit; return its main process."""

    def start(limit: str) -> str:
        host.put(f"{DROP_INS}/limit.conf", f"[Service]\n{limit}\n")
        host.run("systemctl daemon-reload")
        host.run("systemctl reset-failed; systemctl start dedupfs@ckpts")
        return host.show("dedupfs@ckpts", "MainPID")

    yield start
    host.run(f"systemctl stop dedupfs@ckpts; rm -r {DROP_INS}; systemctl daemon-reload")


def test_a_daemon_that_hangs_is_replaced_under_open_files(
    host: Host, impatient: Callable[[str], str]
) -> None:
    pid = impatient("WatchdogSec=12s")
    hanging = host.run(f"cat /proc/{pid}/task/*/children")
    host.run(
        "exec 3> /data/mnt/open; echo one >&3; "
        f"kill -STOP {hanging}; "
        "echo two >&3; exec 3>&-; test \"$(cat /data/mnt/open)\" = 'one\ntwo'"
    )
    assert host.run(f"cat /proc/{pid}/task/*/children") not in ("", hanging)
    assert host.show("dedupfs@ckpts", "MainPID") == pid


def test_a_supervisor_that_hangs_is_ended_and_its_view_mounted_anew(
    host: Host, impatient: Callable[[str], str]
) -> None:
    pid = impatient("WatchdogSec=8s")
    host.run(f"echo kept > /data/mnt/file; sync /data/mnt/file; kill -STOP {pid}")
    host.until("test $(systemctl show -P NRestarts dedupfs@ckpts) -ge 1")
    host.until("systemctl is-active dedupfs@ckpts")
    host.run("grep kept /data/mnt/file && echo more > /data/mnt/file")
    assert host.show("dedupfs@ckpts", "MainPID") != pid
    assert "Watchdog timeout" in host.run("journalctl --boot --unit dedupfs@ckpts")


def test_a_stop_that_never_ends_is_ended_and_what_was_closed_is_kept(
    host: Host, impatient: Callable[[str], str]
) -> None:
    pid = impatient("TimeoutStopSec=2s")
    host.run("echo closed > /data/mnt/hung")
    hanging = host.run(f"cat /proc/{pid}/task/*/children")
    host.run(f"kill -STOP {hanging}; systemctl stop dedupfs@ckpts")
    assert host.show("dedupfs@ckpts", "Result") == "timeout"
    host.run("systemctl start dedupfs@ckpts && grep closed /data/mnt/hung")


def test_a_stop_that_has_much_to_put_away_is_not_cut_short(
    host: Host, impatient: Callable[[str], str]
) -> None:
    hook = f"{INSTALLED}/sitecustomize.py"
    host.put(hook, SLOW_END)
    impatient("TimeoutStopSec=6s\nEnvironment=SLOW_END_S=8")
    host.run("echo closed > /data/mnt/slow; systemctl stop dedupfs@ckpts")
    assert host.show("dedupfs@ckpts", "Result") == "success"
    host.run(f"rm {hook}; systemctl start dedupfs@ckpts && grep closed /data/mnt/slow")


def test_a_service_that_is_stopped_under_open_files_loses_nothing_of_them(service: Host) -> None:
    user = "cd /data/mnt && exec 3> open && echo kept >&3 && echo $$ && exec sleep infinity"
    with service.start(user) as process:
        assert process.stdout is not None
        pid = process.stdout.readline().strip()
        service.run("systemctl stop dedupfs@ckpts && ! grep /data/mnt /proc/mounts")
        assert service.show("dedupfs@ckpts", "Result") == "success"
        service.run("systemctl start dedupfs@ckpts && grep -x kept /data/mnt/open")
        service.run(f"kill {pid}")


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
    host.put("/etc/dedupfs/none.env", "STORE=/data/none\nMOUNTPOINT=/data/mnt\n")
    host.run("systemctl start dedupfs@none", code=1)
    host.run("systemctl stop dedupfs@none; ! test -e /data/none")
    assert "no store in /data/none" in host.journal()


def test_what_can_never_be_mounted_is_not_tried_again(host: Host) -> None:
    host.put("/etc/dedupfs/wrong.env", f"{ENVIRONMENT}OPTIONS=--frobnicate\n")
    host.run("systemctl start dedupfs@wrong", code=1)
    assert host.run("systemctl is-failed dedupfs@wrong") == "failed"
    assert host.show("dedupfs@wrong", "ExecMainStatus") == "2"
    host.run("systemctl reset-failed")
