"""Twenty `dedupfs run` jobs at once on one snapshot, each of which builds and writes in place.

Method: each job compiles a program and has it change a large file in place. Half of the jobs run in
each engine, half of those commit. While all are there, what the store has grown by is compared with
what the jobs say they have written; afterwards their results, and what is left.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.test_run import assert_nothing_left, start
from tests.cli.test_run_overlay import upper_dir
from tests.fuse.harness import END_TIMEOUT_S, read_until

__all__ = ["upper_dir"]

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.unmeasured]

COUNT = 20
CHANGES = 3
STEP = 90_000
MAKEFILE = """
program: main.o change.o
\tcc -o $@ $^
%.o: %.c number.h
\tcc -c $<
"""
MAIN = """
#include <stdlib.h>
int change(const char *, long);
int main(int count, char **words) { return change(words[1], atol(words[2])); }
"""
CHANGE = """
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#include "number.h"
int change(const char *path, long step) {
    int fd = open(path, O_RDWR);
    char *data = mmap(0, 4 * step, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) return 1;
    sprintf(data + step, "job %d", NUMBER);
    sprintf(data + 2 * step, "job %d", NUMBER);
    return pwrite(fd, data + step, 8, 3 * step) != 8;
}
"""
JOB = """
test "$(tail -n 1 number.h)" = '#define NUMBER -1'
printf '#undef NUMBER\n#define NUMBER %d\n' $1 >>number.h
make -s
./program data.bin $2
set -- $(cat number.h main.o change.o program | wc -c) $(sha256sum data.bin) $(tail -n 1 number.h)
echo $1 $2 $6
read go_on
"""
"""Says how many bytes of whole files it wrote, and what became of what it changed in place."""
EXTRA_BYTES_MAX = 64 << 10
"""What a job may cost besides: the chunks around three changes, directories, journal."""


@pytest.mark.program("cc", "make")
def test_twenty_at_once_are_isolated_and_cost_what_they_write(
    store_path: Path,
    tmp_path: Path,
    upper_dir: Path,
    run: Run,
    record_property: Callable[[str, object], None],
) -> None:
    content = make_project(tmp_path / "project")
    run("import", store_path, tmp_path / "project", "snap")
    run("gc", store_path)
    before, disk_before = stored(run, store_path), store_disk_bytes(store_path)
    jobs = []
    for number in range(COUNT):
        options = ["--commit", f"built-{number}"] if number % 4 < 2 else []
        if number % 2:
            options += ["--engine", "overlay", "--upper-dir", str(upper_dir)]
        words = ["--", "sh", "-ec", JOB, "sh", str(number), str(STEP)]
        jobs.append(start(store_path, "snap", *options, *words))
    said = []
    for job in jobs:
        assert job.stdout is not None
        said.append(read_until(job.stdout, lambda text: text.endswith(b"\n")).decode().split())
    written = [int(words[0]) for words in said]
    grown = store_disk_bytes(store_path) - disk_before
    upper_bytes = disk_bytes(upper_dir)
    for number, (job, words) in enumerate(zip(jobs, said, strict=True)):
        assert words[1:] == [changed(content, number), str(number)]
        out, err = job.communicate(b"\n", timeout=END_TIMEOUT_S)
        assert (job.returncode, out) == (0, b""), err.decode()
    assert_nothing_left(store_path)
    in_store, in_upper = sum(written[::2]), sum(written[1::2])
    kept = stored(run, store_path) - before
    committed = sum(written[number] for number in range(COUNT) if number % 4 < 2)
    record_property("fuse: bytes that jobs wrote, that the store grew by", (in_store, grown))
    record_property("overlay: bytes that jobs wrote, in upper directories", (in_upper, upper_bytes))
    record_property("bytes in what was committed, that the store grew by", (committed, kept))
    assert grown <= in_store + COUNT // 2 * EXTRA_BYTES_MAX
    assert upper_bytes <= in_upper + COUNT // 2 * (len(content) + EXTRA_BYTES_MAX)
    assert kept <= committed + COUNT // 2 * EXTRA_BYTES_MAX
    for number in (0, 1):
        exported = tmp_path / f"exported-{number}"
        run("export", store_path, f"built-{number}", exported)
        data = (exported / "data.bin").read_bytes()
        assert hashlib.sha256(data).hexdigest() == changed(content, number)
        again = [str(exported / "program"), str(exported / "data.bin"), str(STEP)]
        assert subprocess.run(again, check=False, timeout=END_TIMEOUT_S).returncode == 0
    names = [row["name"] for row in run("ls", store_path, "--json").json if row["name"] != "snap"]
    assert len(names) == COUNT // 2
    run("rm", store_path, *names)
    run("gc", store_path)
    assert stored(run, store_path) == before


def make_project(top: Path) -> bytes:
    top.mkdir()
    (top / "Makefile").write_text(MAKEFILE)
    (top / "main.c").write_text(MAIN)
    (top / "change.c").write_text(CHANGE)
    (top / "number.h").write_text("#define NUMBER -1\n")
    content = random.Random(7).randbytes(1 << 20)
    (top / "data.bin").write_bytes(content)
    return content


def changed(content: bytes, number: int) -> str:
    """Return the digest of what a job makes of the large file."""
    text = b"job %d\0" % number
    made = bytearray(content)
    for step in (1, 2):
        made[step * STEP : step * STEP + len(text)] = text
    made[3 * STEP : 3 * STEP + 8] = made[STEP : STEP + 8]
    return hashlib.sha256(made).hexdigest()


def disk_bytes(top: Path) -> int:
    """Return what the regular files below a directory take on disk."""
    return sum(
        os.lstat(os.path.join(where, name)).st_blocks * 512
        for where, _directories, names in os.walk(top)
        for name in names
    )


def store_disk_bytes(store_path: Path) -> int:
    """Return what bytes, journals and files of views take on disk."""
    return disk_bytes(store_path / "packs") + disk_bytes(store_path / "views")


def stored(run: Run, store_path: Path) -> int:
    """Return the bytes that the content of snapshots and views takes, and what can be freed."""
    told = run("stats", store_path, "--json").json
    names = ("stored_bytes", "metadata_bytes", "header_bytes", "view_file_bytes", "garbage_bytes")
    return sum(int(told[name]) for name in names)
