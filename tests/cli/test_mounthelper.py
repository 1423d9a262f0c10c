"""What mount(8) hands to its helper, and what becomes of it; tests/systemd mounts for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dedupfs.cli.mounthelper import parse, parse_options
from dedupfs.errors import UsageError
from tests.fuse.harness import REPOSITORY

MEANINGS = {
    "": {},
    "defaults,nofail,_netdev,x-systemd.automount,comment=a b": {},
    "rw,snapshot=s,view=v": {"snapshot": "s", "view": "v"},
    "ro,allow_other": {"read_only": True, "allow_other": True},
    "ro,rw,noexec,exec": {},
    "user=me,nosuid,nodev": {"no_exec": True},
    "user,exec": {},
    "limit=1GiB,no_writeback,no_auto_gc": {
        "limit_bytes": 1 << 30,
        "cached_writes": False,
        "auto_gc": False,
    },
    "metrics=127.0.0.1:9,log_format=json": {"metrics": "127.0.0.1:9", "log_format": "json"},
    'context="u:r:t:s0:c1,c2",rootcontext=a:b:c,ro,context=u:r:t:s0': {
        "labels": 'context="u:r:t:s0",rootcontext="a:b:c"',
        "read_only": True,
    },
    'fscontext="u:r:t:s0:c1,c2"': {"labels": 'fscontext="u:r:t:s0:c1,c2"'},
    'x-note="a,frobnicate",ephemeral': {"ephemeral": True},
}
REFUSED = {
    "frobnicate": "unknown option 'frobnicate'",
    "view": "unknown option 'view'",
    "view=": "'view' needs a value",
    "suid": "option 'suid': set-id bits never count",
    "remount,ro": "option 'remount'",
    "context=": "'context' needs a value",
    "log_format=xml": "one of text, json, journal",
    "ro,view=v": "exclude each other",
    "ro,limit=1GiB": "not with ro",
}


@pytest.mark.parametrize("options", MEANINGS)
def test_options_of_mount_8_mean_what_they_say(options: str) -> None:
    assert parse_options(options, sloppy=False) == MEANINGS[options]


@pytest.mark.parametrize("options", REFUSED)
def test_options_that_mean_nothing_are_refused_by_name(options: str) -> None:
    with pytest.raises(UsageError, match=REFUSED[options]):
        parse_options(options, sloppy=False)


def test_a_sloppy_mount_passes_over_what_it_does_not_know() -> None:
    assert parse_options("frobnicate,suid,ro", sloppy=True) == {"read_only": True}


def test_words_come_in_any_order() -> None:
    request = parse(["/store", "/mnt", "-n", "-o", "ro", "-v", "-t", "dedupfs", "-o", "noexec"])
    assert (request.store, request.mountpoint) == (Path("/store"), Path("/mnt"))
    assert request.settings == {"read_only": True, "no_exec": True}


def test_a_failure_is_one_line_with_a_code_of_mount_8(tmp_path: Path) -> None:
    helper = "import sys; from dedupfs.cli.mounthelper import *; sys.exit(mount_main())"
    for arguments, code, said in (
        (["/store"], 1, "mount.dedupfs: usage: mount.dedupfs STORE MOUNTPOINT"),
        (["/store", "/mnt", "-o", "frobnicate"], 1, "mount.dedupfs: unknown option 'frobnicate'"),
        (["/store", "/mnt", "-f"], 0, ""),
        ([str(tmp_path / "none"), str(tmp_path / "mnt")], 32, "mount.dedupfs: "),
    ):
        done = subprocess.run(
            [sys.executable, "-c", helper, *arguments],
            cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr[: len(said)]) == (code, said)
        assert done.stderr.count("\n") == (1 if said else 0)
    assert not (tmp_path / "none").exists()
