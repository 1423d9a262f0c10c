"""`dedupfs run`: a command in a private view, and nothing of it afterwards.

Method: real runs of shell commands, in processes of their own. What is left is looked for in the
mount tables of all processes, in /proc, in the store's directories, and by `check`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.device import device_for_everybody
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY, eventually, read_until, run_code

pytestmark = [pytest.mark.fuse, pytest.mark.unmeasured]

USER = 54322
# Whatever runs the tests may ignore signals: what a shell ignores from its start it never traps.
RUN = ["env", "--default-signal", sys.executable, "-m", "dedupfs", "run"]


@pytest.fixture
def snapshot(store_path: Path, data: Path, run: Run) -> Iterator[Path]:
    """A store with the snapshot `snap`, of which no run may leave anything."""
    run("import", store_path, data, "snap")
    yield store_path
    assert_nothing_left(store_path)


def start(*words: object, process_group: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*RUN, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        process_group=process_group,
    )


def run_in(*words: object, code: int = 0, stdin: bytes = b"") -> tuple[str, str]:
    process = start(*words)
    out, err = process.communicate(stdin, timeout=END_TIMEOUT_S)
    assert process.returncode == code, (process.returncode, out, err)
    return out.decode(), err.decode()


def in_shell(store: Path, script: str, *options: object, code: int = 0) -> str:
    return run_in(store, "snap", *options, "--", "sh", "-ec", script, code=code)[0]


def processes_of(store: Path) -> list[int]:
    """Return the processes that were started with the store's path, and all below them."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(store) + b"\0" in words and int(directory.name) != os.getpid():
            found.append(int(directory.name))
    return found


def mounts_of(store: Path) -> list[str]:
    found = []
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        try:
            text = table.read_text(errors="surrogateescape")
        except OSError:
            continue
        found += [line for line in text.splitlines() if f" fuse.dedupfs {store} " in line]
    return found


def assert_nothing_left(store: Path) -> None:
    assert eventually(lambda: not processes_of(store) and not mounts_of(store)), (
        processes_of(store),
        mounts_of(store),
    )
    assert list((store / "views").iterdir()) == []
    assert list((store / "run").glob("mount-*")) == []


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 255", 255), ("kill -KILL $$", 137), ("kill -TERM $$", 143)],
)
def test_the_exit_code_is_the_commands(snapshot: Path, script: str, code: int) -> None:
    in_shell(snapshot, script, code=code)


def test_what_cannot_be_run_says_so_as_a_shell_does(snapshot: Path) -> None:
    _, err = run_in(snapshot, "snap", "--", "no-such-command", code=127)
    assert err == "dedupfs: no-such-command: command not found\n"
    _, err = run_in(snapshot, "snap", "--", "./a.txt", code=126)
    assert err == "dedupfs: cannot execute ./a.txt: Permission denied\n"


def test_a_command_that_fails_before_it_is_known_to_run_says_so(snapshot: Path) -> None:
    """Method: process 1 looks at the command's process only when that has ended."""
    late = (
        "import os, runpy; look = os.pidfd_open; "
        "os.pidfd_open = lambda pid: (os.getpid() == 1 "
        "and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT), look(pid))[1]; "
        "runpy.run_module('dedupfs', run_name='__main__')"
    )
    failed = subprocess.run(
        [*RUN[:3], "-c", late, "run", snapshot, "snap", "--", "no-such-command"],
        capture_output=True,
        cwd=REPOSITORY,
        check=False,
        timeout=END_TIMEOUT_S,
    )
    said = b"dedupfs: no-such-command: command not found\n"
    assert (failed.returncode, failed.stderr) == (127, said)


def test_what_it_cannot_do_itself_has_the_usual_codes(snapshot: Path, tmp_path: Path) -> None:
    run_in(snapshot, "other", "--", "true", code=1)
    run_in(tmp_path, "snap", "--", "true", code=2)
    run_in(snapshot, "snap", "--at", tmp_path / "missing", "--", "true", code=2)
    run_in(snapshot, "snap", "--bind", tmp_path / "missing:x", "--", "true", code=2)


def test_a_command_works_in_the_snapshot_and_its_streams_are_its_own(snapshot: Path) -> None:
    script = "cat; cat a.txt >&2; printf ' and more' >> 'sub/b.bin'; mkdir 'a b'; ls; exit 5"
    out, err = run_in(snapshot, "snap", "--", "sh", "-c", script, stdin=b"typed\n", code=5)
    assert out.splitlines() == ["typed", "a b", "a.txt", "pointer", "sub"]
    assert err == "hello\n"
    assert in_shell(snapshot, "ls; wc -c < sub/b.bin").split() == [
        "a.txt",
        "pointer",
        "sub",
        "102400",
    ]


def test_a_view_is_committed_only_when_the_command_succeeds(snapshot: Path, run: Run) -> None:
    in_shell(snapshot, "echo no > a.txt; exit 1", "--commit", "failed", code=1)
    in_shell(snapshot, "echo yes > a.txt", "--commit", "built", "--tag", "ci=7")
    in_shell(snapshot, "echo again > a.txt", "--commit", "built", code=2)
    assert run("cat", snapshot, "built:a.txt").out == "yes\n"
    assert run("cat", snapshot, "snap:a.txt").out == "hello\n"
    listed = run("ls", snapshot, "--json").json
    assert {row["name"]: row["tags"] for row in listed} == {"built": {"ci": "7"}, "snap": {}}


def test_a_directory_and_a_file_are_bound_into_a_tree_at_another_place(
    snapshot: Path, tmp_path: Path
) -> None:
    at, cache = tmp_path / "at here", tmp_path / "my cache"
    at.mkdir()
    cache.mkdir()
    (cache / "old").write_text("kept")
    (at / "hidden").touch()
    binds = ["--bind", f"{cache}:var/cache dir", "--bind", f"{cache}/old:one/file"]
    script = "pwd; ls; cat 'var/cache dir/old' one/file; echo new > 'var/cache dir/new'"
    out = in_shell(snapshot, script, "--at", at, *binds).splitlines()
    assert out == [str(at), "a.txt", "one", "pointer", "sub", "var", "keptkept"]
    assert (cache / "new").read_text() == "new\n"
    assert os.listdir(at) == ["hidden"]


def test_a_bind_does_not_follow_a_link_out_of_the_tree(snapshot: Path, tmp_path: Path) -> None:
    in_shell(snapshot, f"ln -s {tmp_path} out", "--commit", "hostile")
    bind = f"{tmp_path}:out/made"
    _, err = run_in(snapshot, "hostile", "--bind", bind, "--", "true", code=2)
    assert "not below the snapshot's root" in err
    assert not (tmp_path / "made").exists()


def test_a_read_only_run_writes_nothing(snapshot: Path) -> None:
    in_shell(snapshot, "cat a.txt; ! touch a.txt", "--read-only")


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM", "USR1"])
def test_a_signal_is_passed_on(snapshot: Path, name: str) -> None:
    # Not a shell's trap: a signal right before its read(2) would wait for the end of that.
    script = f"from signal import *; here = [SIG{name}]; pthread_sigmask(SIG_BLOCK, here); "
    script += "print('ready', flush=True); sigwait(here); print('got'); exit(9)"
    process = start(snapshot, "snap", "--", sys.executable, "-c", script)
    assert process.stdout is not None
    read_until(process.stdout, lambda said: said == b"ready\n")
    process.send_signal(signal.Signals[f"SIG{name}"])
    out, err = process.communicate(timeout=END_TIMEOUT_S)
    assert (process.returncode, out, err) == (9, b"got\n", b"")


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def first_process_of(pid: int) -> int:
    """Return the child of a run that is in a process namespace of its own."""
    (found,) = [
        child
        for child in children_of(pid)
        if os.readlink(f"/proc/{child}/ns/pid") != os.readlink("/proc/self/ns/pid")
    ]
    return found


def daemons_of(pid: int) -> tuple[int, int]:
    """Return the supervisor and the daemon of a run."""
    first = first_process_of(pid)
    (supervisor,) = [child for child in children_of(pid) if child != first]
    (daemon,) = children_of(supervisor)
    return supervisor, daemon


@pytest.fixture
def waiting(snapshot: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run whose command has a background child, and waits for its standard input."""
    script = "sleep 1000 </dev/null >/dev/null 2>&1 & echo x > new; echo ready; read x; cat new"
    command = ["sh", "-c", f"(setsid {script}) || exit 44"]
    # A group of its own: in ours, SIGTSTP does nothing where no shell waits for us (setpgid(2)).
    process = start(snapshot, "snap", "--", *command, process_group=0)
    assert process.stdout is not None
    read_until(process.stdout, lambda said: said == b"ready\n")
    yield process
    process.kill()
    process.communicate(timeout=END_TIMEOUT_S)


def test_stopping_and_going_on_take_the_command_along(
    waiting: subprocess.Popen[bytes],
) -> None:
    (command,) = children_of(first_process_of(waiting.pid))
    waiting.send_signal(signal.SIGTSTP)
    assert eventually(lambda: state_of(waiting.pid) == state_of(command) == "T")
    waiting.send_signal(signal.SIGCONT)
    assert eventually(lambda: "T" not in (state_of(waiting.pid), state_of(command)))
    out, err = waiting.communicate(b"\n", timeout=END_TIMEOUT_S)
    assert (waiting.returncode, out, err) == (0, b"x\n", b"")


def test_a_dead_daemon_is_no_reason_to_fail(waiting: subprocess.Popen[bytes]) -> None:
    supervisor, daemon = daemons_of(waiting.pid)
    os.kill(daemon, signal.SIGKILL)
    assert eventually(lambda: children_of(supervisor) not in ([], [daemon]))
    out, err = waiting.communicate(b"\n", timeout=END_TIMEOUT_S)
    assert (waiting.returncode, out, err) == (0, b"x\n", b"")


def test_a_daemon_without_supervisor_goes_on(waiting: subprocess.Popen[bytes]) -> None:
    supervisor, _daemon = daemons_of(waiting.pid)
    os.kill(supervisor, signal.SIGKILL)
    out, err = waiting.communicate(b"\n", timeout=END_TIMEOUT_S)
    assert (waiting.returncode, out, err) == (0, b"x\n", b"")


def test_killed_without_its_first_process_it_says_how_a_command_was_killed(
    waiting: subprocess.Popen[bytes],
) -> None:
    os.kill(first_process_of(waiting.pid), signal.SIGKILL)
    assert waiting.wait(END_TIMEOUT_S) == 137


def kill_all(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that none can do anything about another's death
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_without_daemon_and_supervisor_the_command_ends(
    waiting: subprocess.Popen[bytes], snapshot: Path, run: Run
) -> None:
    kill_all(*daemons_of(waiting.pid))
    waiting.wait(END_TIMEOUT_S)  # with its input open: at its end the command fails by itself
    out, err = waiting.communicate()
    assert waiting.returncode == 8, (out, err)
    assert b"the command was killed" in err
    assert_next_command_clears(snapshot, run)


def test_killed_it_leaves_its_daemon_to_clear_up(
    waiting: subprocess.Popen[bytes], snapshot: Path, run: Run
) -> None:
    waiting.kill()
    assert eventually(lambda: not processes_of(snapshot))
    assert list((snapshot / "views").iterdir()) == []
    assert_next_command_clears(snapshot, run)


def test_what_is_left_when_all_are_killed_goes_with_the_next_run(
    waiting: subprocess.Popen[bytes], snapshot: Path, run: Run
) -> None:
    kill_all(waiting.pid, *daemons_of(waiting.pid))
    assert eventually(lambda: not processes_of(snapshot) and not mounts_of(snapshot))
    in_shell(snapshot, "test ! -e new")


def assert_next_command_clears(store: Path, run: Run) -> None:
    assert eventually(lambda: not processes_of(store) and not mounts_of(store))
    run("gc", store)
    assert run("view", "list", store, "--json").json == []
    in_shell(store, "true")


# All that is needed is imported before: the interpreter may lie where only root can read it.
ORDINARY = """
import sys, gettext, importlib, pkgutil
import dedupfs.cli, dedupfs.fuse, dedupfs.maintenance, dedupfs.transfer
from tests.fuse.harness import become
for package in (dedupfs.cli, dedupfs.fuse, dedupfs.maintenance, dedupfs.transfer):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", ".report")):
            importlib.import_module(module.name)
become(int(sys.argv[1]))
sys.exit(dedupfs.cli.main(sys.argv[2:]))
"""


@pytest.fixture
def users_store() -> Iterator[Path]:
    """A place of an ordinary user, on a device that ordinary users may open."""
    if run_code("os.execvp('unshare', ['unshare', '-Urm', 'true'])", USER).returncode != 0:
        pytest.skip("an ordinary user may not make a user namespace here")
    with tempfile.TemporaryDirectory(prefix="dedupfs-") as name, device_for_everybody():
        directory = Path(name).resolve()
        os.chown(directory, USER, USER)
        yield directory / "my store"


def as_user(*words: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ORDINARY, str(USER), *map(str, words)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=END_TIMEOUT_S,
    )
    assert done.returncode == code, done
    return done.stdout + done.stderr


@pytest.mark.root
def test_an_ordinary_user_runs_and_commits_and_stays_who_he_is(users_store: Path) -> None:
    tree = users_store.parent / "tree"
    tree.mkdir(mode=0o777)
    (tree / "a").write_text("old")
    os.chown(tree, USER, USER)
    os.chown(tree / "a", USER, USER)
    as_user("init", users_store)
    as_user("import", users_store, tree, "snap")
    script = "id -u; echo new > a; mkdir -p b/c; stat -c %u a b/c; exit 3"
    bind = f"{tree}:b/tree"
    words = ["run", users_store, "snap", "--bind", bind, "--", "sh", "-ec", script]
    assert as_user(*words, code=3).split()[:3] == [str(USER)] * 3
    as_user("run", users_store, "snap", "--commit", "new", "--", "sh", "-c", "echo 2 > a")
    assert as_user("cat", users_store, "new:a") == "2\n"
    assert as_user("check", users_store).startswith("no problems")
    assert_nothing_left(users_store)


@pytest.mark.root
def test_without_the_device_it_says_what_is_missing(snapshot: Path, run: Run) -> None:
    script = (
        "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9;"
        'exec "$@"'
    )
    inner = [*RUN, str(snapshot), "snap", "--", "true"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", *inner],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=END_TIMEOUT_S,
    )
    assert done.returncode == 8, done
    assert done.stderr.startswith("dedupfs: there is no /dev/fuse: "), done
