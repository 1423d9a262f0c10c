"""What every test gets without asking.

- Tests marked `fuse` or `root` are skipped, with the reason, where the machine cannot run them; so
  are those marked `program` where one of the programs that they name is not installed.
- Tests marked `long` run with `--long` only; the fixture `scale` tells the others how much to do.
- A test fails when the logger `dedupfs` said WARNING or worse and the test did not declare it with
  the marker `allow_log` or the fixture of that name.
- The run fails when a FUSE mount below pytest's temporary directory outlives it. What a run that
  was killed left mounted below the directory that is given (--basetemp) is taken away first.
- Children do not ignore the signals that whoever started the run ignores.
- Coverage leaves out tests marked `unmeasured`, and the processes that they start.
- Hypothesis is deterministic under CI=true and prints how to reproduce a failure everywhere. So are
  the secrets of stores that are made in this process: the order of their records comes from them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import posix
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import coverage
import hypothesis
import pytest

# A deadline would fail on a busy machine what is right on an idle one.
hypothesis.settings.register_profile("dev", derandomize=False, deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")

AllowLog = Callable[..., None]


# --- what this machine cannot run -----------------------------------------------------------------


@cache
def why_no_fuse() -> str | None:
    """Return why nothing can be mounted here, or None when it can."""
    if importlib.util.find_spec("pyfuse3") is None:
        return "pyfuse3 is not installed"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return f"cannot open /dev/fuse: {exc.strerror}"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "not root and no fusermount3"
    return None


@cache
def why_not_root() -> str | None:
    """Return why tests that need root cannot run, or None when they can."""
    return None if os.geteuid() == 0 else "needs to be root"


NEEDS = {"fuse": why_no_fuse, "root": why_not_root}


def pytest_report_header() -> list[str]:
    return [f"{marker} tests: {why_not() or 'run'}" for marker, why_not in NEEDS.items()]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.environ.get("CI") == "true":
        make_secrets_repeat(item)
    for marker, why_not in NEEDS.items():
        reason = why_not()
        if reason is not None and item.get_closest_marker(marker) is not None:
            pytest.skip(f"{marker}: {reason}")
    for mark in item.iter_markers("program"):
        missing = [program for program in mark.args if shutil.which(program) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")


# --- the secrets of stores ------------------------------------------------------------------------


def make_secrets_repeat(item: pytest.Item) -> None:
    """Draw the numbers of `secrets.randbits` from the name of the test's directory, from here on.

    Of that, not of the test: what the tests of a module or a package share is made by any of them.
    Ids of records are hashes with a store's secret number (docs/format.md, "Ids"): what walks
    them in their order, and what a test damages first, would be another in each run.
    """
    seed = zlib.crc32(os.fsencode(item.path.parent.name))
    secrets.randbits = random.Random(seed).getrandbits  # type: ignore[assignment]


# --- coverage -------------------------------------------------------------------------------------


@contextmanager
def unmeasured() -> Iterator[None]:
    """Take no coverage in this process and in those that it starts meanwhile."""
    measuring = coverage.Coverage.current()
    if measuring is None:
        yield
        return
    config = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # coverage's patch = ["subprocess"]
    measuring.stop()
    try:
        yield
    finally:
        measuring.start()
        if config is not None:
            os.environ["COVERAGE_PROCESS_CONFIG"] = config


def _measure_no_more() -> None:
    """In a fork: save nothing at its end, which would be all that this run has seen so far."""
    sys.settrace(None)
    pytest.MonkeyPatch().setattr(os, "_exit", posix._exit)


os.register_at_fork(after_in_child=_measure_no_more)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Take no coverage of what is marked so, from its first fixture to its last."""
    if item.get_closest_marker("unmeasured") is None:
        return (yield)
    with unmeasured():
        return (yield)


# --- the long run ---------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run what takes hours, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    kept = [item for item in items if item.get_closest_marker("long") is None]
    left_out = [item for item in items if item.get_closest_marker("long") is not None]
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


Scale = Callable[[int, int], int]


@pytest.fixture(scope="session")
def scale(request: pytest.FixtureRequest) -> Scale:
    """Return a function that picks how often: its first argument, or its second in a long run."""
    long = bool(request.config.getoption("--long"))
    return lambda short_count, long_count: long_count if long else short_count


# --- undeclared log records -----------------------------------------------------------------------


class RecordKeeper(logging.Handler):
    """Keeps every record of WARNING and above, and the patterns that are allowed to appear."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self.allowed: list[re.Pattern[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def allow(self, *patterns: str) -> None:
        self.allowed.extend(re.compile(pattern) for pattern in patterns)

    def undeclared(self) -> list[str]:
        return [
            f"{record.levelname} {record.name} ({record.pathname}:{record.lineno}): {message}"
            for record in self.records
            for message in [record.getMessage()]
            if not any(pattern.search(message) for pattern in self.allowed)
        ]


@pytest.fixture(autouse=True)
def record_keeper(request: pytest.FixtureRequest) -> Iterator[RecordKeeper]:
    """Fail the test that logs a warning or an error which it did not declare.

    It is set up before every other fixture of the test, so it also sees what their teardown logs.
    """
    keeper = RecordKeeper()
    for marker in request.node.iter_markers("allow_log"):
        keeper.allow(*marker.args)
    logger = logging.getLogger("dedupfs")
    logger.addHandler(keeper)
    try:
        yield keeper
    finally:
        logger.removeHandler(keeper)
    undeclared = keeper.undeclared()
    if undeclared:
        pytest.fail(
            "undeclared log records (declare expected ones with allow_log):\n  "
            + "\n  ".join(undeclared),
            pytrace=False,
        )


@pytest.fixture
def allow_log(record_keeper: RecordKeeper) -> AllowLog:
    """Return a function that declares log messages by regular expression."""
    return record_keeper.allow


# --- a disk that need not wait --------------------------------------------------------------------

MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 1 << 30


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory of the test's own in memory where there is room, else on the disk.

    For what stops at every call to the disk: a fake keeps account of what was synced, so nothing is
    learned from waiting for a real disk some ten thousand times.
    """
    try:
        room = os.statvfs(MEMORY)
    except OSError:
        room = None
    if room is None or room.f_bavail * room.f_frsize < MEMORY_BYTES_MIN:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="dedupfs-", dir=MEMORY) as name:
        yield Path(name)


# --- signals --------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def signals_for_children() -> None:
    """Ignore the hangup that this process was told to ignore (nohup, a shell's ``&``) in it alone.

    What is ignored stays so in children, and some of ours have to end by such a signal.
    """
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # some send it to this process
        signal.signal(signal.SIGINT, signal.default_int_handler)


# --- interrupted ----------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(InterruptedWorker(config))
    elif config.option.basetemp:
        detach_all_below(Path(config.option.basetemp).resolve())


class InterruptedWorker:
    """Says where SIGINT came upon a worker of pytest-xdist, of which nobody hears otherwise."""

    def __init__(self, config: pytest.Config) -> None:
        self._capturing = config.pluginmanager.getplugin("capturemanager")

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        ours = excinfo.traceback.filter(lambda entry: "site-packages" not in str(entry.path))
        excinfo.traceback = ours or excinfo.traceback
        with self._capturing.global_and_fixture_disabled():
            sys.stderr.write(f"{excinfo.getrepr(style='short')}\n")
            sys.stderr.flush()


# --- mounts left behind ---------------------------------------------------------------------------


def mounts_below(directory: Path) -> list[tuple[str, str]]:
    """Return type and mount point of all mounts below ``directory``, innermost first.

    The table is read and nothing below is touched: a mount whose daemon hangs must not hang this.
    """
    found = []
    # Not by splitlines: names may have what that takes for the end of a line.
    for line in os.fsdecode(Path("/proc/self/mounts").read_bytes()).split("\n")[:-1]:
        _source, escaped, fs_type, *_rest = line.split(" ")
        # proc(5): space, tab, newline and backslash are written as octal escapes.
        mount_point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)
        if Path(mount_point).is_relative_to(directory):
            found.append((fs_type, mount_point))
    return found[::-1]


def fuse_mounts_below(directory: Path) -> list[str]:
    """Return the FUSE mount points below ``directory``, innermost first, from the mount table."""
    return [
        mount_point
        for fs_type, mount_point in mounts_below(directory)
        if fs_type == "fuse" or fs_type.startswith("fuse.")
    ]


def detach_all_below(directory: Path) -> None:
    """Take away what a run that was killed has left mounted: pytest is about to delete it all.

    That would delete what is in the mounts, for minutes, and fail at their mount points.
    """
    for _fs_type, mount_point in mounts_below(directory):
        detach(mount_point)


def detach(mount_point: str) -> None:
    """Take a mount out of the tree, whether or not its daemon still answers."""
    if os.geteuid() == 0:
        command = ["umount", "--lazy", "--internal-only", "--detach-loop", mount_point]
    else:
        command = ["fusermount3", "-u", "-z", mount_point]
    subprocess.run(command, check=False, timeout=30)


LEFT_BEHIND = pytest.StashKey[list[str]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a test's mount outlives it, and detach it so that the next run can start.

    Only mounts below this run's own temporary directory count: others may be testing next door.
    Where workers of pytest-xdist run the tests, it is theirs as well, and they have ended by now,
    in whatever way.
    """
    if hasattr(session.config, "workerinput"):
        return
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    left_behind = fuse_mounts_below(factory.getbasetemp().resolve())
    for mount_point in left_behind:
        detach(mount_point)
    session.config.stash[LEFT_BEHIND] = left_behind
    if left_behind and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    left_behind = config.stash.get(LEFT_BEHIND, [])
    if left_behind:
        terminalreporter.section("tests left mounts behind", red=True)
        terminalreporter.write_line("\n".join(left_behind))
