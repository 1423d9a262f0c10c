"""The options that say what of a directory to import.

Specified in docs/cli.md, "import".
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import click

from dedupfs.cli.arguments import completed_with
from dedupfs.errors import UsageError

if TYPE_CHECKING:
    from dedupfs.transfer.selection import Listed, Selection

_STDIN = "-"
_Command = TypeVar("_Command", bound=Callable[..., Any])


class Selecting(TypedDict):
    """What the options give to a command."""

    exclude: tuple[str, ...]
    exclude_from: tuple[str, ...]
    files_from: str | None
    gitignore: bool
    exclude_caches: bool


_OPTIONS = (
    click.option(
        "--exclude",
        metavar="PATTERN",
        multiple=True,
        help="Leave out what matches, as a line of a .gitignore would; repeatable.",
    ),
    click.option(
        "--exclude-from",
        metavar="FILE",
        shell_complete=completed_with("file"),
        multiple=True,
        help="Leave out what matches the patterns in FILE, one a line; repeatable.",
    ),
    click.option(
        "--gitignore",
        is_flag=True,
        help="Leave out what git ignores, and .git itself unless --exclude '!.git' is given.",
    ),
    click.option(
        "--exclude-caches",
        is_flag=True,
        help="Leave out what is beside a CACHEDIR.TAG.",
    ),
    click.option(
        "--files-from",
        metavar="FILE",
        shell_complete=completed_with("file"),
        help="Take only the names in FILE ('-': standard input), NUL or line separated.",
    ),
)


def selecting_options(command: _Command) -> _Command:
    """Give a command the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def selection_of(
    exclude: tuple[str, ...],
    exclude_from: tuple[str, ...],
    files_from: str | None,
    gitignore: bool,
    exclude_caches: bool,
) -> "Selection":
    """Return what the options ask for; patterns of --exclude win over those of files."""
    from dedupfs.transfer.patterns import Patterns, lines_of
    from dedupfs.transfer.selection import Selection

    if [*exclude_from, files_from].count(_STDIN) > 1:
        raise UsageError("standard input can be read once: only one FILE can be '-'")
    lines = [line for file in exclude_from for line in lines_of(_read(file))]
    lines += [os.fsencode(pattern) for pattern in exclude]
    listed = None if files_from is None else _listed(_read(files_from))
    return Selection(Patterns(lines), gitignore, exclude_caches, listed)


def _listed(text: bytes) -> "Listed":
    from dedupfs.transfer.selection import Listed

    listed = Listed()
    paths = [path for path in text.split(b"\0" if b"\0" in text else b"\n") if path]
    if not paths:  # what should have made the list has failed, more likely than not
        raise UsageError("--files-from names nothing")
    for path in paths:
        listed.add(path)
    return listed


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == _STDIN else Path(file).read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read {file}: {exc.strerror}") from exc
