"""Bad input and bad luck: one clear line on standard error, and the documented exit code."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dedupfs.cli.app
from dedupfs import errors
from dedupfs.cli import main
from tests.cli.conftest import Ran, Run

ROOT = Path(__file__).parents[2]


def one_line(ran: Ran) -> str:
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("dedupfs: ")
    assert "Traceback" not in ran.err
    return lines[0]


def test_a_foreign_directory_is_no_store(run: Run, data: Path, tmp_path: Path) -> None:
    assert str(data) in one_line(run("ls", data, code=2))
    assert "missing" in one_line(run("ls", tmp_path / "missing", code=2))
    assert str(data) in one_line(run("init", data, code=2))


def test_a_newer_format_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "newer"
    run("init", path)
    config = json.loads((path / "dedupfs.json").read_text())
    config["format_version"] = 99
    (path / "dedupfs.json").chmod(0o600)
    (path / "dedupfs.json").write_text(json.dumps(config))
    assert "99" in one_line(run("ls", path, code=4))


def test_an_unreadable_configuration(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    run("init", path)
    (path / "dedupfs.json").chmod(0o600)
    (path / "dedupfs.json").write_text("{")
    assert "dedupfs.json" in one_line(run("ls", path, code=3))


def test_a_missing_index_names_the_cure(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "indexless"
    run("init", path)
    for file in (path / "index").iterdir():
        file.unlink()
    assert "dedupfs reindex" in one_line(run("ls", path, code=3))


@pytest.mark.allow_log(".*")
def test_a_truncated_pack_is_found_by_all_who_look(run: Run, tmp_path: Path) -> None:
    source, path = tmp_path / "noise", tmp_path / "truncated"
    source.mkdir()
    (source / "a").write_bytes(random.Random(1).randbytes(200_000))
    run("init", path)
    run("import", path, source, "one")
    [pack] = (path / "packs").rglob("*.pack")
    pack.chmod(0o600)
    os.truncate(pack, 50_000)
    assert run("check", path, code=3).out
    assert run("scrub", path, code=3).out
    assert run("scrub", path, "--json", code=3).json["ok"] is False
    one_line(run("cat", path, "one:a", code=3))
    assert run("export", path, "one", tmp_path / "out", code=3).err.startswith("dedupfs: ")


@pytest.mark.parametrize("name", ["a/b", ".hidden", "-x", "", "x" * 256, "ü"])
def test_a_bad_name(run: Run, store_path: Path, data: Path, name: str) -> None:
    one_line(run("import", store_path, data, "--", name, code=2))


def test_names_that_are_taken_or_missing(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    assert "'one'" in one_line(run("import", store_path, data, "one", code=2))
    assert "'two'" in one_line(run("rm", store_path, "one", "two", code=1))
    assert "one" in run("ls", store_path).out  # all or nothing
    one_line(run("clone", store_path, "one", "one", code=2))
    one_line(run("ls", store_path, "one:nothing/here", code=1))
    one_line(run("ls", store_path, "one:a.txt/below", code=1))
    one_line(run("cat", store_path, "one:sub", code=1))
    one_line(run("cat", store_path, "one:pointer", code=2))
    one_line(run("diff", store_path, "one", "nine", code=1))


def test_arguments_that_make_no_sense(run: Run, store_path: Path, data: Path) -> None:
    one_line(run("frobnicate", code=2))
    one_line(run("import", store_path, code=2))
    one_line(run("import", store_path, data, "x", "--tag", "novalue", code=2))
    one_line(run("init", store_path.parent / "s", "--chunk-size", "1000", code=2))
    one_line(run("init", store_path.parent / "s", "--chunk-size", "big", code=2))
    one_line(run("export", store_path, "x", code=2))
    one_line(run("find", store_path, "*", "--size-min", "-1", code=2))


def test_a_source_that_cannot_be_read(run: Run, store_path: Path, data: Path) -> None:
    one_line(run("import", store_path, data / "missing", "x", code=7))
    one_line(run("import", store_path, data / "a.txt", "x", code=7))
    one_line(run("import", store_path, store_path, "x", code=2))


def test_a_partial_import_says_so(store_path: Path, data: Path) -> None:
    """As an ordinary user, who needs a store of his own."""
    program = (
        "import os, sys; import dedupfs.cli.transfers, dedupfs.cli.stores, dedupfs.store;"
        "import dedupfs.transfer.ingest; from dedupfs.cli import main;"
        "os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534));"
        "sys.exit(main(['init', sys.argv[1]]) or main(['import', *sys.argv[1:]]))"
    )
    (data / "a.txt").chmod(0)
    home = store_path.parent / "home"
    home.mkdir()
    home.chmod(0o777)
    for directory in [store_path.parent, *store_path.parents]:
        if os.geteuid() == 0 and str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    command = [sys.executable, "-c", program, str(home / "store"), str(data), "x"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 7, result.stderr
    assert result.stderr.splitlines() == [
        "dedupfs: a.txt: left out: Permission denied",
        "dedupfs: snapshot x was made, but not everything could be imported (1 problem)",
    ]


@pytest.mark.root
def test_no_permission_for_the_store(run: Run, store_path: Path) -> None:
    program = (
        "import os, sys; import dedupfs.cli.browsing, dedupfs.store, dedupfs.namespace.snapshots;"
        "import dedupfs.namespace.trees; from dedupfs.cli import main;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "ls", str(store_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 3, result.stderr
    assert "Permission denied" in one_line(Ran(result.returncode, "", result.stderr))


def test_a_reader_that_goes_away_is_no_failure(run: Run, store_path: Path, data: Path) -> None:
    for number in range(2_000):
        (data / f"{number:0200}").write_bytes(b"")
    run("import", store_path, data, "many")
    command = f"{sys.executable} -m dedupfs ls {store_path} many | head -n 1"
    shell = ["bash", "-c", command + "; echo ${PIPESTATUS[0]}"]
    result = subprocess.run(shell, check=True, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "141"
    assert result.stderr == ""


def test_a_full_disk_behind_standard_output(run: Run, store_path: Path, data: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    run("import", store_path, data, "one")
    with open("/dev/full", "w") as full:
        for arguments in (["ls", "one"], ["export", "one", "--tar", "-"], ["cat", "one:sub/b.bin"]):
            command = [sys.executable, "-m", "dedupfs", arguments[0], str(store_path)]
            command += arguments[1:]
            result = subprocess.run(
                command, check=False, stdout=full, stderr=subprocess.PIPE, text=True
            )
            assert result.returncode == 7, arguments
            assert "No space left" in one_line(Ran(7, "", result.stderr))


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch, run: Run, store_path: Path) -> None:
    import dedupfs.cli.browsing

    def interrupted(_path: Path) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(dedupfs.cli.browsing, "open_store", interrupted)
    assert one_line(run("ls", store_path, code=130)) == "dedupfs: interrupted"


def test_no_command_at_all_shows_the_help(run: Run) -> None:
    assert "Usage: dedupfs" in run(code=2).err
    assert "Usage: dedupfs" in run("--help").out
    assert run("--version").out.startswith("dedupfs ")


def test_a_bug_is_one_line_and_a_traceback_only_with_debug(
    monkeypatch: pytest.MonkeyPatch, run: Run, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import dedupfs.cli.browsing

    def broken(_path: Path) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(dedupfs.cli.browsing, "open_store", broken)
    line = one_line(run("ls", tmp_path, code=70))
    assert "ZeroDivisionError: division by zero" in line
    assert "report" in line
    monkeypatch.setenv("DEDUPFS_DEBUG", "1")
    assert main(["ls", str(tmp_path)]) == 70
    assert "Traceback" in capfd.readouterr().err


def test_the_documented_exit_codes_are_the_real_ones() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.DedupfsError)
    ]
    assert {value.exit_code for value in classes} <= documented
    assert {0, 70, 130, 141} <= documented


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    for name in dedupfs.cli.app.COMMANDS:
        assert f"### {name}" in text, name
