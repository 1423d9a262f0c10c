"""man: a page for each command that says what --help says, and that man's own checkers accept."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from dedupfs.cli import man, mounthelper
from dedupfs.cli.app import COMMANDS, app
from tests.cli.conftest import Run
from tests.fuse.harness import REPOSITORY


@pytest.fixture
def directory(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    run("man", "--output", tmp_path / "a")
    return tmp_path / "a"


def plain(text: str) -> str:
    """Undo roff's escapes of characters and fonts."""
    for escape, character in (("(aq", "'"), ("(ga", "`"), ("(ha", "^"), ("(ti", "~"), ("-", "-")):
        text = text.replace(f"\\{escape}", character)
    return re.sub(r"\\f[BR]|\\&", "", text).replace("\\e", "\\")


def test_each_command_has_a_page_with_all_its_options(directory: Path) -> None:
    pages = {path.name for path in (directory / "man1").iterdir()}
    assert pages == {"dedupfs.1", *(f"dedupfs-{name}.1" for name in COMMANDS)}
    assert [path.name for path in (directory / "man8").iterdir()] == ["mount.dedupfs.8"]
    overview = plain((directory / "man1" / "dedupfs.1").read_text())
    context = click.Context(app, info_name="dedupfs")
    for name in COMMANDS:
        command = app.get_command(context, name)
        assert command is not None
        page = plain((directory / "man1" / f"dedupfs-{name}.1").read_text())
        assert page.startswith(f'.TH "DEDUPFS-{name.upper()}" "1" "1970-01-02"')
        commands = [command, *getattr(command, "commands", {}).values()]
        for parameter in (each for one in commands if not one.hidden for each in one.params):
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert all(option in page for option in parameter.opts), parameter
        assert f"dedupfs-{name}(1)" in overview
        related = page.partition(".SH SEE ALSO\n")[2]
        assert related.startswith("dedupfs(1), ")
        assert set(re.findall(r"dedupfs-([\w-]+)\(1\)", related)) <= set(COMMANDS)
    checkout = plain((directory / "man1" / "dedupfs-checkout.1").read_text())
    assert "dedupfs checkout [OPTIONS] STORE SNAPSHOT[:PATH] DIR\n" in checkout


def examples() -> list[str]:
    """Return the command lines of all examples of --help, each without what a shell does."""
    context = click.Context(app, info_name="dedupfs")
    commands = [command for name in COMMANDS if (command := app.get_command(context, name))]
    commands += [inner for one in commands for inner in getattr(one, "commands", {}).values()]
    texts = [(each.help or "").replace("\\\n", " ") for each in [app, *commands]]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [re.split(r"[|>]", line)[0] for line in lines if line.startswith("dedupfs ")]


def documented_examples() -> list[str]:
    """Return those of docs/cli.md: what it shows indented, but not how a command is used."""
    text = (REPOSITORY / "docs" / "cli.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (dedupfs .*)$", text, re.MULTILINE)
    shown = [re.split(r"[|>&#]", line)[0] for line in lines if not re.search(r"\[|\.\.\.", line)]
    return [line for line in shown if not re.search(r" [A-Z]{2,}\b", line)]


@pytest.mark.parametrize("line", dict.fromkeys([*examples(), *documented_examples()]))
def test_an_example_is_what_the_command_understands(line: str) -> None:
    context: click.Context | None = None
    command: click.Command = app
    name: str | None = "dedupfs"
    words = shlex.split(line)[1:]
    while True:
        context = command.make_context(name, words, parent=context)
        if not isinstance(command, click.Group):
            break
        name, found, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert found is not None
        command = found


def test_the_exit_codes_are_those_of_the_table(directory: Path) -> None:
    table = (REPOSITORY / "docs" / "cli.md").read_text().partition("## Exit codes")[2]
    documented = re.findall(r"^\| (\d+) \|", table.partition("\n## ")[0], re.MULTILINE)
    assert [code for code, _ in man._CODES] == documented


def test_the_helper_of_mount_has_a_page_with_all_its_options(directory: Path) -> None:
    page = plain((directory / "man8" / "mount.dedupfs.8").read_text())
    options = {*mounthelper.MEANINGS, *mounthelper.IMPOSSIBLE, *mounthelper.VALUED, "rw"}
    options |= {*mounthelper.LABELS}
    assert {option for option in options if not re.search(rf"\b{option}\b", page)} == set()
    for code in (mounthelper.WRONG_USE, mounthelper.INTERRUPTED, mounthelper.FAILED):
        assert f"\n{code}\n" in page


def test_the_pages_are_the_same_when_nothing_changed(
    directory: Path, run: Run, tmp_path: Path
) -> None:
    run("man", "--output", tmp_path / "again")
    for path in directory.glob("*/*"):
        again = tmp_path / "again" / path.relative_to(directory)
        assert path.read_bytes() == again.read_bytes()
    (tmp_path / "file").touch()
    run("man", "--output", tmp_path / "file" / "below", code=7)


@pytest.mark.program("mandoc")
def test_mandoc_finds_nothing_to_say(directory: Path) -> None:
    check(["mandoc", "-Tlint", "-W", "warning", *map(str, sorted(directory.glob("*/*")))])


@pytest.mark.program("groff")
def test_groff_finds_nothing_to_say(directory: Path) -> None:
    pages = sorted(map(str, directory.glob("*/*")))
    check(["groff", "-ww", "-man", "-Tutf8", "-z", *pages])


def check(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
