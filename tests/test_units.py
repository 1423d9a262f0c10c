"""The systemd units are what systemd understands, run commands that exist, and may do little.

Method: systemd checks copies in which only the program is another one, since it is not installed.
tests/systemd/ starts them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dedupfs.cli.app import app

REPOSITORY = Path(__file__).parent.parent
UNITS = REPOSITORY / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("dedupfs*.service"))
OTHERS = sorted(path.name for path in UNITS.glob("dedupfs*.[ts]*") if path.name not in SERVICES)
USERS = "user/dedupfs@.service"
THAT_MOUNT = ("dedupfs@.service", "dedupfs-volumes.service")
OF_A_MOUNT_NAMESPACE = re.compile(
    r"(Private\w+|(Network|IPC)NamespacePath|Protect(System|Home|Proc|ControlGroups|Kernel\w+)"
    r"|ProcSubset|DynamicUser|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths"
    r"|TemporaryFileSystem|Root\w+|MountFlags|MountAPIVFS|MountImages|Extension\w+|LoadCredential\w*|LogNamespace)="
)
"""Settings that give a service one of its own: systemd.exec(5); systemd, src/core/execute.c,
exec_needs_mount_namespace(), where a network namespace needs one, too, since version 254."""
LISTING_THAT_KNOWS_UNITS_ALONE = 250
"""systemd that rates a unit file without a running manager: systemd-analyze(1), --offline."""


def copies(directory: Path, source: Path) -> None:
    program = shutil.which("true")
    assert program is not None
    for path in source.glob("dedupfs*"):
        text = path.read_text().replace("=dedupfs ", f"={program} ")
        (directory / path.name).write_text(text)


def analyze(directory: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "XDG_RUNTIME_DIR": str(directory)},
    )


@pytest.mark.parametrize("unit", [*SERVICES, USERS])
def test_a_service_runs_a_command_that_exists(unit: str) -> None:
    started = re.findall(r"^ExecStart=dedupfs (\S+)", (UNITS / unit).read_text(), re.MULTILINE)
    assert len(started) == 1
    with app.make_context("dedupfs", [started[0], "--help"], resilient_parsing=True) as context:
        assert app.get_command(context, started[0]) is not None


@pytest.mark.program("systemd-analyze")
@pytest.mark.parametrize("unit", [*SERVICES, *OTHERS, USERS])
def test_systemd_finds_nothing_wrong(unit: str, tmp_path: Path) -> None:
    source = (UNITS / unit).parent
    copies(tmp_path, source)
    instance = Path(unit).name.replace("@", "@srv-some\\x2dstore")
    (tmp_path / instance).write_text((tmp_path / Path(unit).name).read_text())
    manager = "--user" if unit == USERS else "--system"
    words = (manager, "verify", "--man=no", "--recursive-errors=no", tmp_path / instance)
    done = analyze(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", THAT_MOUNT)
def test_a_service_that_mounts_has_the_mount_namespace_of_all(unit: str) -> None:
    lines = (UNITS / unit).read_text().splitlines()
    assert [line for line in lines if OF_A_MOUNT_NAMESPACE.match(line)] == []
    other = (UNITS / "dedupfs-gc@.service").read_text().splitlines()
    assert len([line for line in other if OF_A_MOUNT_NAMESPACE.match(line)]) >= 5


def test_mounts_of_the_plugin_go_on_when_it_ends() -> None:
    assert "KillMode=process" in (UNITS / "dedupfs-volumes.service").read_text().splitlines()


@pytest.mark.program("systemd-analyze")
@pytest.mark.parametrize("unit", SERVICES)
def test_a_service_is_no_more_exposed_than_the_guide_says(unit: str, tmp_path: Path) -> None:
    version = int(analyze(tmp_path, "--version").stdout.split()[1])
    if version < LISTING_THAT_KNOWS_UNITS_ALONE:
        pytest.skip(f"systemd {version} rates running services alone")
    guide = (REPOSITORY / "docs" / "guide" / "systemd.md").read_text()
    promised = re.search(rf"^\| `{re.escape(unit)}` \| (\d+\.\d) \|", guide, re.MULTILINE)
    assert promised is not None
    copies(tmp_path, UNITS)
    threshold = f"--threshold={promised[1].replace('.', '')}"
    done = analyze(tmp_path, "security", "--offline=true", "--no-pager", threshold, tmp_path / unit)
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
