"""Completion: what a store has is offered to real shells, whatever characters are in it.

Method: bash runs its completion function on a line as readline calls it; zsh and fish are driven
through a terminal and by ``complete --do-complete``. The line that comes of it is run.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem
from hypothesis import given
from hypothesis import strategies as st

from dedupfs.cli import completing
from dedupfs.cli.completion import script
from dedupfs.namespace.view import View
from dedupfs.store import Store
from tests.cli.conftest import Run
from tests.fuse.harness import END_TIMEOUT_S, REPOSITORY

Test = Callable[..., None]
BREAKS = " \t\n\"'@><=;|&(:"


@pytest.mark.parametrize(
    ("line", "words", "cut"),
    [
        ("dedupfs ", ["dedupfs", ""], 0),
        ("dedupfs ls st", ["dedupfs", "ls", "st"], 0),
        ("ls st snap:dir/f", ["ls", "st", "snap:dir/f"], 5),
        ("mount --view=a", ["mount", "--view=a"], 7),
        ("ls 'a b' c\\ d\\:e", ["ls", "a b", "c d:e"], 0),
        ("ls 'a b'c", ["ls", "a bc"], 3),
        ("ls 'it'\\''s ' \"q\\\"\\n\" $'n\\n\\' ", ["ls", "it's ", 'q"\\n', "n\n' "], 0),
        ("ls a@b", ["ls", "a@b"], 2),
        ("ls ''  ", ["ls", "", ""], 0),
    ],
)
def test_a_line_is_split_as_bash_and_readline_split_it(
    line: str, words: list[str], cut: int
) -> None:
    assert completing.split_line(line, BREAKS)[:2] == (words, cut)


@given(text=st.text(st.sampled_from("ab \n'\"\\$`!*#~(é\udcff"), max_size=8))
@pytest.mark.parametrize("quote", ["", "'", '"', "$'"])
def test_what_is_quoted_reads_as_what_it_was(text: str, quote: str) -> None:
    line = f"ls x{quote}{completing.quoted(text, quote)}"
    words, _, still = completing.split_line(line, BREAKS)
    assert (words, still) == (["ls", f"x{text}"], quote)


def test_what_a_value_is_about_says_nothing_to_a_terminal() -> None:
    item = CompletionItem("1", help="/a\x1b]0;x\x07\n b\udcff\u202eé")
    kind, value, about, rest = completing._record(item, "", 0, None).split(b"\0")
    assert (kind, value, about.decode(), rest) == (b"plain", b"1", "/a?]0;x? b??é", b"")


SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
READY = {
    "bash": "bind 'set bell-style none'; source {script}; PS1=; echo RE''ADY",
    "zsh": "autoload compinit; compinit -u -D; setopt nobeep; source {script}; PS1=; echo RE''ADY",
    "fish": "source {script}; function fish_prompt; end; echo RE''ADY",
}
HOSTILE = {
    "a b": "a",
    "it's co:lon=@": "i",
    "new\nline": "n",
    'quo"te$x`\\*?[]~#!': "q",
    "über": "ü",
    "p$(>ran)`>ran`;>ran&|>ran\r%(e:>ran)": "p",
}
"""What is in the snapshot, and what is typed of it."""


@dataclass
class Terminal:
    """A shell that a user sits in front of."""

    descriptor: int
    shown: Path

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: bytes) -> bytes:
        """Read what the terminal shows, up to ``text``."""
        seen = b""
        until = time.monotonic() + END_TIMEOUT_S
        while text not in seen:
            readable, _, _ = select.select([self.descriptor], [], [], until - time.monotonic())
            assert readable, f"no {text!r} in {seen!r}"
            seen += os.read(self.descriptor, 65536)
        return seen

    def complete(self, line: str) -> list[str]:
        """Type a line and Tab, and return the arguments that the line has then."""
        self.type(f"{line}\t\x01show \x05\n")
        said = self.wait_for(b"SHOWN")
        assert b"Traceback" not in said
        assert b"Error" not in said
        return [os.fsdecode(each) for each in self.shown.read_bytes().split(b"\0")[1:-1]]


@pytest.fixture
def terminal(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Iterator[Terminal]:
    shell: str = request.param
    programs, shown = tmp_path / "bin", tmp_path / "shown"
    programs.mkdir()
    for name, lines in (
        ("dedupfs", f'PYTHONPATH="{REPOSITORY}" exec "{sys.executable}" -m dedupfs "$@"'),
        ("show", f'printf "%s\\0" "$@" >"{shown}"; echo SHO""WN'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{lines}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "script").write_text(script(shell))
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvpe(shell, SHELLS[shell], environment)
    found = Terminal(descriptor, shown)
    try:
        found.type(READY[shell].format(script=tmp_path / "script") + "\n")
        found.wait_for(b"READY")
        yield found
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(descriptor)


def in_each_shell(test: Test) -> Test:
    marks = [pytest.param(name, marks=pytest.mark.program(name)) for name in SHELLS]
    return pytest.mark.parametrize("terminal", marks, indirect=True)(test)


@in_each_shell
@pytest.mark.unmeasured
def test_whatever_is_in_a_snapshot_can_be_completed(
    terminal: Terminal, run: Run, store_path: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    (data / "deep er").mkdir(parents=True)
    (data / "deep er" / "file").touch()
    for name in HOSTILE:
        (data / name).touch()
    run("import", store_path, data, "step@1", "--tag", "loss rate=1 2")
    run("tag", store_path, "step@1", "k$(>ran)`>ran`;=1")
    run("import", store_path, data, "other")
    assert terminal.complete("dedupfs ls store st") == ["ls", "store", "step@1"]
    for name, typed in HOSTILE.items():
        found = terminal.complete(f"dedupfs cat ./store step@1:{typed}")
        assert found == ["cat", "./store", f"step@1:{name}"]
    assert terminal.complete("dedupfs --debug cat -- store 'step@1:deep er/f") == [
        "--debug",
        "cat",
        "--",
        "store",
        "step@1:deep er/file",
    ]
    assert terminal.complete("dedupfs prune store --keep-tag lo")[-1] == "loss rate="
    assert terminal.complete("dedupfs prune store --keep-tag k")[-1] == "k$(>ran)`>ran`;="
    assert not list(tmp_path.rglob("ran")), "what a name says is never run"


@in_each_shell
@pytest.mark.unmeasured
def test_commands_options_and_paths_are_completed_and_nothing_where_there_is_nothing(
    terminal: Terminal, run: Run, store_path: Path, tmp_path: Path
) -> None:
    with Store.open(store_path) as store:
        View.bring_back(store, "job17").close()
    (tmp_path / "a dir").mkdir()
    (tmp_path / "a file").touch()
    assert terminal.complete("dedupfs vol") == ["volume-plugin"]
    assert terminal.complete("dedupfs view di") == ["view", "diff"]
    assert terminal.complete("dedupfs mount --snap") == ["mount", "--snapshot"]
    assert terminal.complete("dedupfs mount store --view jo") == [
        "mount",
        "store",
        "--view",
        "job17",
    ]
    assert terminal.complete("dedupfs limit store --view=jo") == ["limit", "store", "--view=job17"]
    assert terminal.complete("dedupfs init --compression z")[-1] == "zstd"
    # zsh takes the slash away again when the word is left.
    assert [word.rstrip("/") for word in terminal.complete("dedupfs stats sto")][1:] == ["store"]
    assert terminal.complete("dedupfs import store a")[2].rstrip("/") == "a dir"
    for place in ("nowhere", "bin"):
        assert terminal.complete(f"dedupfs ls {place} jo") == ["ls", place, "jo"]
