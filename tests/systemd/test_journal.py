"""Logs with fields, as journald keeps them."""

from __future__ import annotations

import json
from typing import Any

from tests.systemd.conftest import MARKS
from tests.systemd.host import Host

pytestmark = MARKS
PROGRAM = r"""
import logging
from dedupfs.cli import logs
logs.set_up(logging.DEBUG, "journal", "%(message)s")
log = logging.getLogger("dedupfs.written")
log.debug("plain a=%s", "b")
log.warning("several lines path=%s", "a\nPRIORITY=0\nb")
log.error("no text name=%s", "\udcff\x01")
log.info("long data=%s other=%s", "x" * 300_000, "y\n" * 100_000)
try:
    raise ValueError("trace")
except ValueError:
    log.critical("bug op=%s", "read", exc_info=True)
"""


def entries(host: Host, *matches: str) -> list[dict[str, Any]]:
    host.run("journalctl --sync")
    lines = host.run(f"journalctl --boot --output=json --all {' '.join(matches)}").splitlines()
    return [json.loads(line) for line in lines]


def test_each_field_arrives_as_it_was_said(host: Host) -> None:
    host.put("/run/log.py", PROGRAM)
    host.run(f"{host.python} /run/log.py")
    plain, several, binary, long, bug = entries(host, "DEDUPFS_LOGGER=dedupfs.written")
    assert (plain["MESSAGE"], plain["PRIORITY"], plain["DEDUPFS_A"]) == ("plain a=b", "7", "b")
    assert (plain["SYSLOG_IDENTIFIER"], plain["_TRANSPORT"]) == ("dedupfs", "journal")
    assert (plain["CODE_FILE"], plain["CODE_FUNC"]) == ("/run/log.py", "<module>")
    assert plain["CODE_LINE"] == str(PROGRAM.splitlines().index('log.debug("plain a=%s", "b")') + 1)
    assert several["DEDUPFS_PATH"] == "a\nPRIORITY=0\nb"
    assert (several["MESSAGE"], several["PRIORITY"]) == (
        "several lines path=a\nPRIORITY=0\nb",
        "4",
    )
    assert bytes(binary["DEDUPFS_NAME"]) == b"\xff\x01"
    assert bytes(binary["MESSAGE"]) == b"no text name=\xff\x01"
    assert binary["PRIORITY"] == "3"
    assert long["DEDUPFS_DATA"] == "x" * 300_000
    assert long["DEDUPFS_OTHER"] == "y\n" * 100_000
    assert long["PRIORITY"] == "6"
    assert bug["MESSAGE"].startswith("bug op=read\nTraceback (most recent call last):\n")
    assert bug["MESSAGE"].endswith("\nValueError: trace")
    assert (bug["PRIORITY"], bug["DEDUPFS_OP"]) == ("2", "read")


def test_what_a_service_says_is_found_by_its_fields(service: Host) -> None:
    pid = service.show("dedupfs@ckpts", "MainPID")
    daemon = service.run(f"cat /proc/{pid}/task/*/children")
    entry = entries(service, "_SYSTEMD_UNIT=dedupfs@ckpts.service", f"_PID={daemon}")[0]
    assert entry["MESSAGE"] == "mounted store=/data/store mountpoint=/data/mnt"
    assert (entry["DEDUPFS_STORE"], entry["DEDUPFS_MOUNTPOINT"]) == ("/data/store", "/data/mnt")
    assert (entry["DEDUPFS_LOGGER"], entry["PRIORITY"]) == ("dedupfs.fuse.server", "6")
