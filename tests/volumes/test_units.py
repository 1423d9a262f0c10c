"""The plugin's systemd units: systemd understands them, and they do not stop what must go on.

Method: systemd checks copies in which only the program is another one, since it is not installed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent.parent / "systemd"
NAMES = ("dedupfs-volumes.service", "dedupfs-volumes.socket")
PRIVATE_MOUNTS = ("Private", "Protect", "ReadOnlyPaths", "ReadWritePaths", "MountFlags", "Root")
HARMLESS = ("ProtectClock", "ProtectHostname")  # capabilities, and another namespace


@pytest.mark.program("systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_plugin(tmp_path: Path) -> None:
    program = shutil.which("true")
    assert program is not None
    for name in NAMES:
        text = (UNITS / name).read_text().replace("=dedupfs ", f"={program} ")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(tmp_path / name for name in NAMES)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_plugin_shares_its_mounts_and_leaves_them_when_it_ends() -> None:
    lines = (UNITS / NAMES[0]).read_text().splitlines()
    assert "KillMode=process" in lines
    assert not [
        line for line in lines if line.startswith(PRIVATE_MOUNTS) and not line.startswith(HARMLESS)
    ]
