"""The benchmarks' own arithmetic, and that a run cleans up after itself, interrupted or not.

Method: results are made from values by hand and judged, compared and printed; `python -m bench`
runs as a process on next to nothing. No figure that it measures is looked at.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.commands import BenchError, loop_devices_of, mounts_below, reason
from bench.datasets import Scale, checkpoint_family, compressible_file, small_tree
from bench.harness import Harness, Record, rotated
from bench.questions import QUESTIONS
from bench.report import comparison, markdown, result_lines, table
from bench.results import (
    Answer,
    Curve,
    Question,
    Result,
    Run,
    Target,
    conclude,
    human,
    load,
    ratio_of_rounds,
    save,
)

ROOT = Path(__file__).resolve().parent.parent
FIND = Question("find", "find", "s", (Target("<=", 1, "native"), Target("<=", 2)))
READ = Question("read", "read", "MB/s", (Target(">=", 0.5, "native"),), more_is_better=True)


def result_of(question: Question, native: list[float], dedupfs: list[float]) -> Result:
    return conclude(question, {"native": [*native], "dedupfs": [*dedupfs]}, {})


def run_of(*results: Result) -> Run:
    return Run({"kernel": "6.18"}, {"git": "2.39"}, {"scale": "1"}, list(results))


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    assert ratio_of_rounds([2.0, 30.0, 400.0], [1.0, 10.0, 200.0]) == 2.0
    assert ratio_of_rounds([2.0, None, 9.0], [1.0, 10.0, 3.0]) == 2.5
    assert ratio_of_rounds([None, 8.0], [4.0, None]) == 2.0, "no round in common: medians"
    assert ratio_of_rounds([1.0], [0.0]) is None
    assert ratio_of_rounds([], [1.0]) is None


def test_a_target_is_met_when_the_value_or_the_ratio_reaches_it() -> None:
    result = result_of(FIND, [1.0, 1.2, 3.0], [0.9, 1.2, 2.4])
    assert [verdict.met for verdict in result.targets] == [True, True]
    assert result.met is True
    slow = result_of(FIND, [1.0], [1.5])
    assert [verdict.met for verdict in slow.targets] == [False, True]
    assert slow.met is False
    assert slow.targets[0].value == 1.5
    assert result_of(READ, [100.0], [49.0]).met is False
    assert result_of(READ, [100.0], [50.0]).met is True


def test_a_target_whose_peer_is_missing_is_neither_met_nor_missed() -> None:
    result = conclude(FIND, {"dedupfs": [1.0]}, {"native": "is not installed"})
    assert result.targets[0].met is None
    assert "native: is not installed" in result.targets[0].reason
    assert result.targets[1].met is True
    assert result.met is None
    assert any("is not installed" in line for line in result_lines(result))


def test_every_question_has_a_text_for_each_of_its_targets() -> None:
    texts = [t.text(q.unit) for q in QUESTIONS.values() for t in q.targets]
    assert "<= 64 KiB" in texts
    assert ">= 0.9 x native" in texts
    assert ">= 50,000 files/s" in texts


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (65536, "B", "64 KiB"),
        (3 << 30, "B", "3 GiB"),
        (0.1234, "s", "0.123 s"),
        (1234.5, "ms", "1234 ms"),
        (765_432.1, "/s", "765,432 /s"),
        (49, "", "49"),
    ],
)
def test_values_are_told_as_a_person_reads_them(value: float, unit: str, text: str) -> None:
    assert human(value, unit) == text


def test_only_what_lies_beyond_the_rounds_of_both_runs_got_worse() -> None:
    old = run_of(result_of(FIND, [1.0, 1.1], [2.0, 2.4]), result_of(READ, [100.0], [60.0, 70.0]))
    same = run_of(result_of(FIND, [1.0, 1.1], [2.3, 2.9]), result_of(READ, [100.0], [58.0, 61.0]))
    text, worse = comparison(old, same)
    assert worse == 0
    assert "WORSE" not in text
    slow = run_of(result_of(FIND, [9.0, 9.9], [2.7, 2.9]), result_of(READ, [100.0], [40.0, 50.0]))
    text, worse = comparison(old, slow)
    assert worse == 2, "native got worse too, but that is the machine"
    assert text.count("WORSE") == 2
    assert "target: met before, MISSED now" in text
    text, worse = comparison(slow, old)
    assert worse == 0
    assert text.count("better") == 3


def test_a_run_that_was_written_is_read_as_it_was(tmp_path: Path) -> None:
    run = run_of(result_of(FIND, [1.0], [0.5]))
    run.curves.append(Curve("store", "A larger store", "GiB", "ms", [1, 10], {"mount": [300, 301]}))
    save(run, tmp_path / "run.json")
    assert load(tmp_path / "run.json") == run
    with pytest.raises(SystemExit, match="absent"):
        load(tmp_path / "absent.json")


def test_the_tables_have_a_line_for_each_question_and_name_what_was_missed() -> None:
    run = run_of(result_of(FIND, [1.0], [2.5]), result_of(READ, [100.0], [80.0]))
    run.results[1].answers["bindfs"] = Answer(reason="not | there")
    run.curves.append(Curve("store", "A larger store", "GiB", "ms", [1, 10], {"mount": [300, 301]}))
    for text in (table(run), markdown(run)):
        assert "1 of 2 lines with a target are met; missed: find" in text
        assert "native 1 s" in text
        assert "not measured: bindfs: not | there" in text
    lines = markdown(run).splitlines()
    assert any(line.startswith("| find | 2.5 s |") for line in lines)
    assert any(line.startswith("| mount | 300 ms | 301 ms |") for line in lines)


def test_a_variant_that_fails_leaves_a_reason_and_the_others_their_values() -> None:
    record = Record(("find-cold", "find-warm"), ("native", "dedupfs"))

    def fails() -> float:
        raise BenchError("exit code 1")

    assert record.turn("find-cold", "native", 0, lambda: 1.0)
    assert not record.turn("find-cold", "dedupfs", 0, fails)
    assert record.has_failed("find-cold", "dedupfs")
    assert not record.has_failed("find-warm", "dedupfs")
    assert record.turn("find-warm", "dedupfs", 1, lambda: 3.0)
    cold, warm = record.conclude()
    assert cold.answers["native"].values == [1.0, None]
    assert cold.answers["dedupfs"].reason == "exit code 1"
    assert warm.answers["dedupfs"].values == [None, 3.0]


def test_rounds_go_on_while_there_is_time_and_at_least_once(tmp_path: Path) -> None:
    run = run_of()
    assert list(Harness(tmp_path, Scale(1), run).each_round(0)) == [0]
    assert list(Harness(tmp_path, Scale(1), run, 3).each_round(0)) == [0, 1, 2]
    assert len(list(Harness(tmp_path, Scale(1), run).each_round(60))) > 1
    assert [rotated("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]


def test_reasons_do_not_name_the_directory_of_the_run() -> None:
    error = BenchError("cp: /var/tmp/dedupfs-bench-x1/2-peers/mnt/a: no")
    assert reason(error) == "cp: 2-peers/mnt/a: no"
    assert reason(OSError(1, "Operation not permitted", "/x")) == "Operation not permitted"


def contents(top: Path) -> dict[str, bytes]:
    return {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def test_data_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        small_tree(tmp_path / name / "tree", 30)
        checkpoint_family(tmp_path / name / "family", count=2, file_bytes=1 << 20)
        compressible_file(tmp_path / name / "packed", 1 << 20, "seed")
    first = contents(tmp_path / "a")
    assert len(first) == 33
    assert first == contents(tmp_path / "b")
    assert len(first["packed"]) == 1 << 20


# --- whole runs -----------------------------------------------------------------------------------


def command(directory: Path, *arguments: str) -> list[str]:
    small = ("--scale", "0.004", "--rounds", "1", "--directory", str(directory))
    return [sys.executable, "-m", "bench", *small, *arguments]


@pytest.mark.fuse
@pytest.mark.unmeasured
def test_a_run_writes_its_results_and_leaves_nothing(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out.json"
    work.mkdir()
    arguments = ("--only", "opening", "--json", str(out))
    done = subprocess.run(
        command(work, *arguments),
        check=False,
        cwd=ROOT,
        timeout=200,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = load(out)
    assert [result.key for result in found.results] == ["mount-large", "memory"]
    assert found.results[0].answers["dedupfs"].median is not None
    assert found.seconds.keys() == {"opening"}
    assert "mount of 1,000 snapshots" in done.stdout
    assert os.listdir(work) == []


@pytest.mark.fuse
@pytest.mark.unmeasured
def test_an_interrupted_run_leaves_no_mount_and_no_file(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    process = subprocess.Popen(
        command(work, "--only", "views"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    for _ in range(3000):  # a minute and a half at most
        if mounts_below(work):
            break
        try:
            process.wait(0.03)
        except subprocess.TimeoutExpired:
            continue
        break
    assert process.poll() is None, process.communicate()[1]
    os.killpg(process.pid, signal.SIGINT)
    _out, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert mounts_below(work) == []
    assert loop_devices_of(work) == []
    assert os.listdir(work) == []
