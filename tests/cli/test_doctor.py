"""doctor: every probe, on what it should find and on what it should not.

Method: probes of the machine are shown other places; the file system is a real one of each kind.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dedupfs.maintenance import ground, machine
from dedupfs.maintenance.findings import Finding, Grade
from tests.checkout.conftest import loop_image
from tests.cli.conftest import Run
from tests.fuse.harness import REPOSITORY

NOBODY = 65534


def refuse(name: str) -> object:
    raise ImportError(f"libfuse3.so: no such file ({name})")


def grades(findings: Any) -> dict[str, Grade]:
    return {finding.name: finding.grade for finding in findings}


@pytest.mark.parametrize(
    ("release", "grade"),
    [
        ("6.18.44-fc", Grade.OK),
        ("6.9.0", Grade.OK),
        ("6.8.12-generic", Grade.LESS),
        ("5.15.0", Grade.LESS),
        ("10.0", Grade.OK),
        ("strange", Grade.LESS),
    ],
)
def test_a_kernel_before_6_9_has_no_takeover(release: str, grade: Grade) -> None:
    assert machine.kernel(release).grade is grade


def test_a_device_that_is_missing_or_closed_is_a_fault(tmp_path: Path) -> None:
    missing = machine.device(tmp_path / "fuse")
    assert (missing.grade, "modprobe" in missing.advice) == (Grade.FAULT, True)
    (tmp_path / "directory").mkdir()
    assert machine.device(tmp_path / "directory").grade is Grade.FAULT
    (tmp_path / "file").touch()
    assert machine.device(tmp_path / "file").grade is Grade.FAULT
    assert machine.device(Path("/dev/null")).grade is Grade.FAULT, "how containers hide it"


def test_the_helper_is_set_user_id_root_or_of_no_use(tmp_path: Path) -> None:
    program = tmp_path / "fusermount3"
    program.touch(0o755)
    assert machine.helper(None, 0).grade is Grade.OK
    assert machine.helper(None, NOBODY).grade is Grade.FAULT
    found = machine.helper(str(program), NOBODY)
    assert (found.grade, "chmod 4755" in found.advice) == (Grade.FAULT, True)
    program.chmod(0o4755)
    expected = Grade.OK if os.geteuid() == 0 else Grade.FAULT
    assert machine.helper(str(program), NOBODY).grade is expected


def test_other_users_are_let_in_where_fuse_conf_says_so(tmp_path: Path) -> None:
    conf = tmp_path / "fuse.conf"
    assert machine.allow_other(conf, NOBODY).grade is Grade.LESS
    conf.write_text("#user_allow_other\nmount_max = 1000\n")
    assert machine.allow_other(conf, NOBODY).grade is Grade.LESS
    assert machine.allow_other(conf, 0).grade is Grade.OK
    conf.write_text("mount_max = 1000\n user_allow_other \n")
    assert machine.allow_other(conf, NOBODY).grade is Grade.OK


def test_libraries_limits_and_names() -> None:
    assert machine.libraries(lambda name: name).grade is Grade.OK
    broken = machine.libraries(refuse)
    assert (broken.grade, "libfuse3.so" in broken.said) == (Grade.FAULT, True)
    assert machine.open_files((256, 4096)).advice == "ulimit -n 4096"
    assert machine.open_files((1024, 4096)).grade is Grade.OK
    assert machine.open_files((resource.RLIM_INFINITY, -1)).grade is Grade.OK
    assert machine.open_files((256, 512)).advice == "ulimit -n 1024, as root"
    assert machine.clock(10**9).grade is Grade.LESS
    assert machine.clock(time.time_ns()).grade is Grade.OK
    assert "lmdb" in machine.libraries(lambda name: name).said
    assert machine.names("utf-8").grade is Grade.OK
    assert machine.names("ascii").grade is Grade.LESS


def test_an_ordinary_user_needs_user_namespaces_for_run(tmp_path: Path) -> None:
    switch = tmp_path / "max"
    places = [(tmp_path / "missing", "1", "x=0"), (switch, "0", "max=1000")]
    switch.write_text("1000\n")
    assert machine.user_namespaces(places, NOBODY).grade is Grade.OK
    switch.write_text("0\n")
    assert machine.user_namespaces(places, NOBODY).advice == "have root run 'sysctl max=1000'"
    assert machine.user_namespaces(places, 0).grade is Grade.OK


def test_a_file_system_that_is_far_away_or_does_not_last_is_told() -> None:
    assert ground.file_system("nfs4").grade is Grade.FAULT
    assert ground.file_system("tmpfs").grade is Grade.LESS
    assert ground.file_system("overlay").grade is Grade.LESS
    assert ground.file_system("ext4").grade is Grade.OK


def test_a_disk_turns_or_does_not_or_there_is_none(tmp_path: Path) -> None:
    """Method: sysfs as it shows a disk (8:0) and its partition (8:1)."""
    queue = tmp_path / "sda" / "queue"
    queue.mkdir(parents=True)
    (tmp_path / "sda" / "sda1").mkdir()
    (tmp_path / "8:0").symlink_to("sda")
    (tmp_path / "8:1").symlink_to("sda/sda1")
    for number in (os.makedev(8, 0), os.makedev(8, 1)):
        for word, grade in (("1\n", Grade.LESS), ("0\n", Grade.OK)):
            (queue / "rotational").write_text(word)
            found = ground.disk(number, tmp_path)
            assert found is not None
            assert found.grade is grade
    (tmp_path / "vda").mkdir()
    (tmp_path / "253:0").symlink_to("vda")
    assert ground.disk(os.makedev(253, 0), tmp_path) is None
    assert ground.disk(os.makedev(0, 30), tmp_path) is None


@pytest.mark.root
def test_a_store_in_a_container_of_overlayfs_works_and_does_not_last(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("lower", "upper", "work", "top"):
        (tmp_path / name).mkdir()
    where = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    words = ["mount", "-t", "overlay", "overlay", "-o", where, str(top)]
    if subprocess.run(words, check=False, capture_output=True, timeout=60).returncode:
        pytest.skip("no overlayfs here")
    try:
        found = probe(top, "overlay")
    finally:
        subprocess.run(["umount", str(top)], check=True, timeout=60)
    assert found["file system"] is Grade.LESS
    assert found["index"] is found["hard links"] is Grade.OK
    assert Grade.FAULT not in found.values()


def probe(directory: Path, fs_type: str) -> dict[str, Grade]:
    found = grades(ground.look_at_ground(directory / "new" / "store", fs_type))
    assert os.listdir(directory) in ([], ["lost+found"]), "nothing is left there"
    return found


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def test_memory_has_holes_and_no_reflinks(memory: Path) -> None:
    found = probe(memory, "tmpfs")
    assert found["holes"] is Grade.OK
    assert found["reflinks"] is Grade.LESS
    assert found["index"] is found["hard links"] is Grade.OK


@pytest.mark.root
@pytest.mark.program("mkfs.xfs")
def test_xfs_has_all(tmp_path: Path) -> None:
    with loop_image(tmp_path, "xfs", 400 << 20) as top:
        found = probe(top, "xfs")
    assert {name: grade for name, grade in found.items() if name not in ("writes", "room")} == {
        name: Grade.OK for name in found if name not in ("writes", "room")
    }


@pytest.mark.root
@pytest.mark.program("mkfs.vfat")
def test_vfat_has_neither_hard_links_nor_holes(tmp_path: Path) -> None:
    image, top = tmp_path / "image", tmp_path / "top"
    with image.open("wb") as file:
        file.truncate(40 << 20)
    subprocess.run(["mkfs.vfat", str(image)], check=True, timeout=60, capture_output=True)
    top.mkdir()
    command = ["mount", "-t", "vfat", "-o", "loop", str(image), str(top)]
    if subprocess.run(command, check=False, timeout=60, capture_output=True).returncode:
        pytest.skip("this kernel has no vfat")
    try:
        found = probe(top, "vfat")
    finally:
        subprocess.run(["umount", str(top)], check=True, timeout=60)
    assert found["hard links"] is Grade.FAULT
    assert found["holes"] is found["reflinks"] is Grade.LESS


@pytest.mark.root
def test_a_full_or_read_only_disk_is_told(tmp_path: Path) -> None:
    top = tmp_path / "small"
    top.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(top)]
    subprocess.run(mount, check=True, timeout=60)
    try:
        full: list[Finding] = list(ground.look_at_ground(top, "tmpfs"))
        assert grades(full)["writing"] is Grade.FAULT
        assert os.strerror(errno.ENOSPC) in next(f.said for f in full if f.name == "writing")
        assert grades(full)["room"] is Grade.OK, "what was tried is gone again"
        (top / "filler").write_bytes(bytes(500 << 10))
        assert grades(ground.look_at_ground(top, "tmpfs"))["room"] is Grade.LESS
        subprocess.run(["mount", "-o", "remount,ro", str(top)], check=True, timeout=60)
        assert grades(ground.look_at_ground(top, "tmpfs"))["writing"] is Grade.FAULT
    finally:
        subprocess.run(["umount", str(top)], check=True, timeout=60)


def test_the_command_says_it_in_text_and_json_and_by_its_exit_code(
    run: Run, store_path: Path, tmp_path: Path
) -> None:
    works = {finding.name: finding for finding in machine.look_at_machine()}
    code = int(any(finding.grade is Grade.FAULT for finding in works.values()))
    before = sorted(os.listdir(store_path / "run"))
    rows = run("doctor", store_path, "--json", code=code).json
    assert sorted(os.listdir(store_path / "run")) == before
    assert {row["name"]: row["grade"] for row in rows[: len(works)]} == {
        name: finding.grade.value for name, finding in works.items()
    }
    assert {row["name"] for row in rows} >= {"index", "holes", "reads", "room"}
    text = run("doctor", tmp_path / "not" / "yet", code=code).out
    assert all(row["name"] in text for row in rows)
    (tmp_path / "file").touch()
    run("doctor", tmp_path / "file", code=2)
    documented = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    assert all(f"`{row['name']}`" in documented for row in rows)


def told(place: Path) -> dict[str, Any]:
    """Return what doctor says to an ordinary user about a place."""
    # Imported before: the interpreter's directories may be root's alone.
    code = f"""
import click.formatting, platform, trio, pyfuse3
import dedupfs.cli.doctor, dedupfs.cli.output, dedupfs.transfer.report, dedupfs.fuse.mountpoints
import dedupfs.maintenance.ground, dedupfs.maintenance.machine
from dedupfs.cli import main
from tests.fuse.harness import become
become({NOBODY})
raise SystemExit(main(["doctor", "--json", {os.fspath(place)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert not done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert done.returncode == int(any(row["grade"] == "fault" for row in rows.values()))
    return rows


@pytest.mark.root
def test_an_ordinary_user_is_told_what_he_lacks(memory: Path) -> None:
    pytest.importorskip("pyfuse3")
    os.chown(memory, NOBODY, NOBODY)
    rows = told(memory)
    if shutil.which("fusermount3") is None:
        assert rows["fusermount3"]["grade"] == "fault"
    else:
        assert "not needed" not in rows["fusermount3"]["said"]
    assert rows["index"]["grade"] == "ok"
    assert os.listdir(memory) == []
    os.chown(memory, 0, 0)
    memory.chmod(0o700)
    rows = told(memory / "not" / "for him")
    assert rows["writing"]["grade"] == "fault"
