"""Each command once as its help shows it, and what its options change."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from dedupfs.namespace.view import View
from dedupfs.store import Store
from tests.cli.conftest import Run


def test_import_ls_and_export(run: Run, store_path: Path, data: Path, tmp_path: Path) -> None:
    said = run("import", store_path, data, "one", "--tag", "loss=1.5")
    assert said.out.startswith("one: 3 files, 100.0 KiB; 0 unchanged")
    assert said.err == ""
    listed = run("ls", store_path)
    assert listed.out.splitlines()[1].split()[0] == "one"
    assert "loss=1.5" in listed.out
    [snapshot] = run("ls", store_path, "--json").json
    assert snapshot["logical_bytes"] == 102_406
    assert snapshot["tags"] == {"loss": "1.5"}
    assert snapshot["source"] == str(data)
    run("export", store_path, "one:sub", tmp_path / "out")
    assert (tmp_path / "out" / "b.bin").read_bytes() == bytes(range(256)) * 400


def test_ls_counts_a_file_of_two_names_once(run: Run, store_path: Path, data: Path) -> None:
    os.link(data / "a.txt", data / "second")
    run("import", store_path, data, "one")
    [snapshot] = run("ls", store_path, "--json").json
    assert snapshot["logical_bytes"] == 102_406


def test_import_is_named_after_its_directory(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data)
    assert run("ls", store_path).out.splitlines()[1].startswith("data ")


def test_import_json(run: Run, store_path: Path, data: Path) -> None:
    report = run("import", store_path, data, "one", "--json").json
    assert report["files"] == 3
    assert report["problems"] == []


def test_ls_of_directories(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    assert run("ls", store_path, "one").out.split() == ["a.txt", "pointer", "sub"]
    assert run("ls", store_path, "one:sub/").out.split() == ["b.bin"]
    assert run("ls", store_path, "one:a.txt").out.split() == ["a.txt"]
    assert run("ls", "-R", store_path, "one").out.split() == [
        "a.txt",
        "pointer",
        "sub",
        "sub/b.bin",
    ]
    long = run("ls", "-l", store_path, "one").out.splitlines()
    assert long[0].startswith("-rw")
    assert "6 B" in long[0]
    assert long[1].endswith("pointer -> a.txt")
    entries = run("ls", store_path, "one", "--json").json
    assert [entry["type"] for entry in entries] == ["f", "l", "d"]
    assert entries[0]["size"] == 6


def test_names_of_any_bytes_are_printed_safely(run: Run, store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd/\xff\x1b[31m\n")).write_bytes(b"")
    run("import", store_path, tmp_path / "odd")
    assert run("ls", store_path, "odd").out == "\\xff\\x1b[31m\\n\n"
    [entry] = run("ls", store_path, "odd", "--json").json
    assert os.fsencode(entry["path"]) == b"\xff\x1b[31m\n"


def test_cat(store_path: Path, data: Path, run: Run) -> None:
    run("import", store_path, data, "one")
    command = [
        sys.executable,
        "-m",
        "dedupfs",
        "cat",
        str(store_path),
        "one:sub/b.bin",
        "one:a.txt",
    ]
    result = subprocess.run(command, check=True, capture_output=True)
    assert result.stdout == bytes(range(256)) * 400 + b"hello\n"


def test_find(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    run("clone", store_path, "one", "two")
    assert run("find", store_path, "*.bin").out.split() == ["one:sub/b.bin", "two:sub/b.bin"]
    assert run("find", store_path, "sub/*", "two").out.split() == ["two:sub/b.bin"]
    assert run("find", store_path, "*", "one", "--type", "l").out.split() == ["one:pointer"]
    assert run("find", store_path, "*", "one", "--size-min", "1KiB", "--type", "f").out.split() == [
        "one:sub/b.bin"
    ]
    assert run("find", store_path, "nothing", "--json").json == []


def test_diff(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    (data / "a.txt").write_text("hello world\n")
    (data / "sub" / "b.bin").unlink()
    (data / "new").mkdir()
    run("import", store_path, data, "two")
    said = run("diff", store_path, "one", "two")
    assert said.out.splitlines() == ["M a.txt (6 B -> 12 B)", "+ new/", "- sub/b.bin"]
    run("diff", store_path, "one", "two", "--exit-code", code=1)
    run("diff", store_path, "one", "one", "--exit-code")
    found = run("diff", store_path, "one:sub", "two:sub", "--json").json
    assert [(item["kind"], item["path"]) for item in found] == [("removed", "b.bin")]


def test_rename_clone_tag_pin(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    run("rename", store_path, "one", "first")
    run("clone", store_path, "first", "second")
    assert run("tag", store_path, "second", "a=1", "b=2").out == "a=1 b=2\n"
    assert run("tag", store_path, "second", "c=3", "--remove", "a").out == "b=2 c=3\n"
    assert run("tag", store_path, "second", "--json").json == {"b": "2", "c": "3"}
    run("pin", store_path, "second")
    assert "second*" in run("ls", store_path).out
    assert "pinned" in run("rm", store_path, "second", code=2).err
    assert "pinned" in run("rm", "--dry-run", store_path, "second", code=2).err
    run("unpin", store_path, "second")
    run("rm", store_path, "second")
    assert "second" not in run("ls", store_path).out


def test_rm_says_what_it_frees(run: Run, store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "noise").write_bytes(random.Random(1).randbytes(500_000))
    run("import", store_path, tmp_path / "big", "one")
    run("clone", store_path, "one", "two")
    assert "would free" in run("rm", "--dry-run", store_path, "one").out
    freed = run("rm", "--dry-run", "--json", store_path, "one", "two").json
    assert freed["freed_bytes"] > 500_000
    assert len(run("ls", store_path, "--json").json) == 2
    run("rm", "--no-gc", store_path, "one", "two")
    would = run("gc", "--dry-run", "--json", store_path).json
    assert would["freed_bytes"] > 500_000
    done = run("gc", "--json", store_path).json
    assert done["freed_bytes"] > 500_000
    assert "freed 0 B" in run("gc", store_path).out


def test_du_and_stats(run: Run, store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "shared").write_bytes(random.Random(2).randbytes(300_000))
    run("import", store_path, tmp_path / "big", "one")
    (tmp_path / "big" / "own").write_bytes(random.Random(3).randbytes(100_000))
    run("import", store_path, tmp_path / "big", "two")
    used = run("du", store_path, "--json").json
    one, two = used["snapshots"]
    assert one["logical_bytes"] == 300_000
    assert one["exclusive_bytes"] < 10_000
    assert 100_000 < two["exclusive_bytes"] < 120_000
    assert "together" in run("du", store_path, "one", "two").out
    sums = run("stats", store_path, "--json").json
    assert sums["snapshots"] == 2
    assert sums["logical_bytes"] == 700_000
    assert sums["unique_bytes"] == 400_000
    shown = run("stats", store_path).out
    for name in ("logical", "unique", "stored", "trees", "index", "garbage", "holes", "ratio"):
        assert name in shown


def test_check_and_scrub(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    assert run("check", store_path).out.startswith("no problems")
    assert run("scrub", store_path).out.startswith("no damage")
    assert run("check", store_path, "--json").json["ok"] is True
    assert run("scrub", store_path, "--json").json["ok"] is True


def test_reindex_brings_snapshots_back(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    shutil.rmtree(store_path / "index")
    said = run("reindex", store_path)
    assert "1 snapshot, 0 views" in said.out
    assert run("cat", store_path, "one:a.txt").out == "hello\n"
    assert run("reindex", "--json", store_path).json["ok"] is True


def test_tar_to_standard_output(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    command = [sys.executable, "-m", "dedupfs", "export", str(store_path), "one", "--tar", "-"]
    result = subprocess.run(command, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
        assert sorted(archive.getnames()) == [".", "./a.txt", "./pointer", "./sub", "./sub/b.bin"]


def test_tar_to_a_file_that_exists_is_refused(
    run: Run, store_path: Path, data: Path, tmp_path: Path
) -> None:
    run("import", store_path, data, "one")
    run("export", store_path, "one", "--tar", tmp_path / "out.tar")
    assert (
        "File exists" in run("export", store_path, "one", "--tar", tmp_path / "out.tar", code=7).err
    )


def test_every_command_has_help_with_an_example() -> None:
    from click.testing import CliRunner

    from dedupfs.cli.app import COMMANDS, app

    for name, (_, short) in COMMANDS.items():
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0, name
        assert "Example" in result.output or name == "view", name
        assert short.endswith(".")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, dedupfs.cli\n"
        "code = dedupfs.cli.main(['--help'])\n"
        "heavy = {'lmdb', 'trio', 'pyfuse3', 'rich', 'msgspec', 'zstandard'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_json_goes_through_a_pipe_as_one_document(run: Run, store_path: Path, data: Path) -> None:
    run("import", store_path, data, "one")
    assert len(json.loads(run("ls", "-R", "--json", store_path, "one").out)) == 4


def test_du_tells_of_snapshots_views_and_sets(run: Run, store_path: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "shared").write_bytes(random.Random(4).randbytes(300_000))
    run("import", store_path, tmp_path / "big", "one")
    run("clone", store_path, "one", "two")
    (tmp_path / "big" / "own").write_bytes(random.Random(5).randbytes(100_000))
    run("import", store_path, tmp_path / "big", "three")
    with Store.open(store_path) as store:
        View.bring_back(store, "job", snapshot="one").close()
    found = run("du", store_path, "--json").json
    assert [one["name"] for one in found["snapshots"]] == ["one", "three", "two"]
    assert [one["name"] for one in found["views"]] == ["job"]
    three = found["snapshots"][1]
    assert (three["logical_bytes"], three["shared_bytes"]) == (400_000, 300_000)
    assert three["exclusive_logical_bytes"] == 100_000
    assert 90_000 < three["frees_bytes"] < 110_000
    assert found["views"][0]["shared_bytes"] == 300_000
    assert (found["together"], found["garbage_bytes"]) == (None, 0)
    every = ("one", "two", "three", "--view", "job")
    together = run("du", store_path, *every, "--json").json["together"]
    assert together["exclusive_logical_bytes"] == 400_000
    assert together["frees_bytes"] > 400_000
    lines = run("du", store_path, "--sort", "frees").out.splitlines()
    assert lines[0].split() == ["NAME", "LOGICAL", "SHARED", "EXCLUSIVE", "FREES"]
    assert lines[1].startswith("three")
    assert "job (view)" in run("du", store_path).out
    assert run("du", store_path, "one", "--view", "job").out.splitlines()[-1].startswith("together")
    assert "no view 'other'" in run("du", store_path, "--view", "other", code=1).err
    would = run("rm", "--dry-run", "--json", store_path, "three").json
    assert would["frees_bytes"] == three["frees_bytes"]
    run("rm", "--no-gc", store_path, "three")
    assert "garbage: dedupfs gc" in run("du", store_path).err
    sums = run("stats", store_path, "--json").json
    assert sums["copies_bytes"] == 900_000
    assert sums["copies_inodes"] == 6
    assert sums["garbage_disk_bytes"] >= three["frees_bytes"]
