"""The command that draws a store: report. Specified in docs/cli.md."""

import json
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from dedupfs import __version__
from dedupfs.cli import output
from dedupfs.cli.arguments import JSON, STORE, completed_with, open_store
from dedupfs.errors import SourceError, UsageError

if TYPE_CHECKING:
    from dedupfs.maintenance.overview import HolderSpace, Overview

_STDOUT = "-"


@click.command()
@STORE
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    shell_complete=completed_with("file"),
    help="Write to FILE, replacing it ('-': standard output).",
)
@JSON
def report(store: Path, target: str | None, as_json: bool) -> None:
    """Draw STORE as one HTML page, which needs no network and nothing beside it.

    What each snapshot and view takes, who shares how much with whom, how the store grew, what
    prunes would free, the largest files and directories. With --json the same numbers for programs.
    STORE may be mounted and written to meanwhile. The page needs the extra 'report' of the package;
    --json does not.

    \b
    Examples:
      dedupfs report store/ -o report.html
      dedupfs report store/ --json
    """
    from dedupfs.maintenance.overview import take_overview

    if target is None:
        if not as_json:
            raise UsageError("say where to: -o report.html ('-o -' is standard output)")
        target = _STDOUT
    if target != _STDOUT:
        _require_place(Path(target), store)
    draw = None if as_json else _renderer()
    with open_store(store) as opened, output.meter("counting", is_bytes=False) as bar:
        overview = take_overview(opened, bar.update)
    text = draw(overview) if draw else json.dumps(overview_json(overview), indent=2) + "\n"
    data = text.encode("utf-8", "backslashreplace")
    if target == _STDOUT:
        sys.stdout.buffer.write(data)
        return
    try:
        with replacing(Path(target)) as file:
            file.write(data)
    except OSError as exc:
        raise SourceError(f"cannot write {target}: {exc.strerror}") from exc
    output.print_line(f"wrote {target}: {output.size(len(data))}")


def _renderer() -> "Callable[[Overview], str]":
    """Return what draws the page; asked for first, so that nothing is counted in vain."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache
    try:
        from dedupfs.report.page import render
    except ImportError as exc:
        raise UsageError(
            "the page needs matplotlib and jinja2: pip install 'dedupfs[report]', "
            f"or take --json ({exc})"
        ) from exc
    return partial(render, version=__version__, size=output.size)


def _require_place(target: Path, store: Path) -> None:
    """Refuse what cannot be written, and the store's own directories by whatever path."""
    try:
        top = store.stat()
    except OSError:
        return  # opening it will tell
    if not os.path.isdir(target.parent):
        raise SourceError(f"cannot write {target}: no directory {target.parent} can be reached")
    for directory in Path(os.path.realpath(target)).parents:
        with suppress(OSError):
            if os.path.samestat(directory.stat(), top):
                raise UsageError(f"{target} lies in the store: write the report somewhere else")


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``target`` when it is complete, and is gone otherwise.

    What is there and no regular file (a pipe, a terminal) is written to as it is.
    """
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(target))  # a link to a report stays one
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# --- JSON ---------------------------------------------------------------------------------------


def overview_json(overview: "Overview") -> dict[str, output.Json]:
    """Return all that the page shows, with exact bytes."""
    from dedupfs.cli.space import usage_json

    return {
        "store": overview.store_path,
        "dedupfs": __version__,
        "made_ns": overview.made_ns,
        "seconds": round(overview.seconds, 3),
        "store_usage": usage_json(overview.usage),
        "snapshots": [_space_json(it) for it in overview.spaces if it.kind == "snapshot"],
        "views": [_space_json(it) for it in overview.spaces if it.kind == "view"],
        "checkouts": _checkouts_json(overview),
        "growth": [
            {
                "name": point.name,
                "created_ns": point.created_ns,
                "logical_bytes": point.logical_bytes,
                "stored_bytes": point.stored_bytes,
                "new_bytes": point.new_bytes,
            }
            for point in overview.growth
        ],
        "matrix": {
            "names": list(overview.matrix.names),
            "kinds": list(overview.matrix.kinds),
            "shared_bytes": [list(row) for row in overview.matrix.rows],
            "left_off": overview.matrix.left_off,
        },
        "prunes": [
            {
                "rule": prune.rule,
                "kept": prune.kept,
                "removed": list(prune.removed),
                "freed_bytes": prune.freed_bytes,
                "frees_bytes": prune.frees_bytes,
            }
            for prune in overview.prunes
        ],
        "largest_files": [
            {
                "snapshot": file.snapshot,
                "path": output.text_of(file.path),
                "logical_bytes": file.logical_bytes,
            }
            for file in overview.largest.files
        ],
        "largest_files_complete": overview.largest.is_complete,
        "directories_of": overview.directories_of or None,
        "largest_directories": [
            {
                "path": output.text_of(directory.path),
                "logical_bytes": directory.logical_bytes,
                "entries": directory.entries,
            }
            for directory in overview.directories
        ],
        "gaps": [{"what": gap.what, "holders": list(gap.holders)} for gap in overview.gaps],
        "gap_count": overview.gap_count,
    }


def _checkouts_json(overview: "Overview") -> list[output.Json]:
    return [
        {
            "number": checkout.number,
            "kind": checkout.kind,
            "directory": output.text_of(checkout.directory),
            "created_ns": checkout.created_ns,
            "snapshot": checkout.snapshot or None,
            "link": checkout.link or None,
            "stored_bytes": checkout.reached_bytes,
            "exclusive_bytes": checkout.exclusive_bytes,
        }
        for checkout in overview.checkouts
    ]


def _space_json(space: "HolderSpace") -> dict[str, output.Json]:
    found: dict[str, output.Json] = {
        "name": space.name,
        "created_ns": space.created_ns,
        "entries": space.entries,
        "logical_bytes": space.logical_bytes,
        "stored_bytes": space.reached_bytes,
        "shared_bytes": space.shared_bytes,
        "exclusive_bytes": space.exclusive_bytes,
        "frees_bytes": space.frees_bytes,
    }
    if space.kind == "view":
        found |= {
            "base": space.base or None,
            "unsettled_bytes": space.own_bytes,
            "pid": space.owner_pid,
            "mountpoint": space.mounted_on or None,
        }
    else:
        found |= {
            "new_bytes": space.new_bytes,
            "pinned": space.pinned,
            "source": space.source,
            "tags": dict(space.tags),
        }
    return found


COMMANDS: list[click.Command] = [report]
