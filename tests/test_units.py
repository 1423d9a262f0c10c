"""The systemd units are what systemd understands, and run the command as it is documented.

Method: systemd checks copies in which only the program is another one, since it is not installed.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from dedupfs.cli.app import app

UNITS = Path(__file__).parent.parent / "systemd"
COMMAND = "dedupfs gc %f"


def test_the_service_runs_a_command_that_exists() -> None:
    text = (UNITS / "dedupfs-gc@.service").read_text()
    assert f"ExecStart={COMMAND}\n" in text
    with app.make_context("dedupfs", ["gc", "--help"], resilient_parsing=True) as context:
        assert app.get_command(context, "gc") is not None


@pytest.mark.program("systemd-analyze")
@pytest.mark.parametrize("unit", ["dedupfs-gc@.service", "dedupfs-gc@.timer"])
def test_systemd_finds_nothing_wrong(unit: str, tmp_path: Path) -> None:
    program = shutil.which("true")
    assert program is not None
    for path in UNITS.glob("dedupfs*"):
        text = path.read_text().replace("=dedupfs ", f"={program} ")
        (tmp_path / path.name).write_text(text)
    instance = unit.replace("@", "@srv-some\\x2dstore")
    (tmp_path / instance).write_text((tmp_path / unit).read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", tmp_path / instance],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
