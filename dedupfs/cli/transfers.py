"""Commands that move trees: import, export.

Specified in docs/cli.md.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Unpack

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import (
    JSON,
    STORE,
    TAG,
    completed_with,
    find_directory,
    open_store,
    parse_tags,
    parse_time,
    snapshot_argument,
)
from dedupfs.cli.problems import Complaints, problems_json
from dedupfs.cli.selecting import Selecting, selecting_options, selection_of
from dedupfs.errors import CorruptError, SourceError, UsageError

if TYPE_CHECKING:
    from dedupfs.model import TreeEntry
    from dedupfs.store import Store
    from dedupfs.transfer.report import ExportReport, IngestReport

_STDOUT = "-"


@click.command("import")
@STORE
@click.argument(
    "directory", type=click.Path(path_type=Path), shell_complete=completed_with("directory")
)
@click.argument("name", required=False)
@TAG
@click.option("--time", "when", metavar="TIME", help="When it was made, if not now (ISO 8601).")
@click.option("-x", "--one-file-system", is_flag=True, help="Leave out what is mounted below.")
@click.option("--reread", is_flag=True, help="Read files that look unchanged as well.")
@click.option("--adopt", is_flag=True, help="Take large files over without copying them.")
@selecting_options
@JSON
def import_(
    store: Path,
    directory: Path,
    name: str | None,
    tags: tuple[str, ...],
    when: str | None,
    one_file_system: bool,
    reread: bool,
    adopt: bool,
    as_json: bool,
    **selecting: Unpack[Selecting],
) -> None:
    """Make the snapshot NAME (by default the directory's own name) of DIRECTORY.

    Keeps modes, owners, times, extended attributes, ACLs, symbolic and hard links, holes and
    special files. Files that have not changed since the last import of DIRECTORY are not read
    again. What cannot be read is reported and left out, and the exit code is 7; the snapshot is
    made of the rest. Interrupted, nothing is left behind but chunks, which gc frees.

    \b
    Examples:
      dedupfs import store/ /data/ckpt-1000 step-1000 --tag loss=1.93
      dedupfs import store/ ~/project --gitignore --exclude '*.log'
    """
    from dedupfs.transfer.ingest import IngestOptions, ingest_tree

    parsed = parse_tags(tags)
    created_ns = None if when is None else parse_time(when)
    selection = selection_of(**selecting)
    if name is None:
        name = os.path.basename(os.path.realpath(directory))
    complain = Complaints()
    with open_store(store) as opened, output.meter("importing") as bar:
        report = ingest_tree(
            opened,
            directory,
            name,
            tags=parsed,
            progress=output.shown_on(bar),
            on_error=complain,
            options=IngestOptions(one_file_system, reread, selection, created_ns, adopt=adopt),
        )
    _print_import(name, report, as_json)
    if report.problems:
        raise SourceError(
            f"snapshot {name} was made, but not everything could be imported "
            f"({output.count_text(len(report.problems), 'problem')})"
        )


def _print_import(name: str, report: "IngestReport", as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "snapshot": name,
                "files": report.files,
                "files_unchanged": report.files_unchanged,
                "directories": report.directories,
                "logical_bytes": report.logical_bytes,
                "bytes_read": report.bytes_read,
                "files_cloned": report.cloned,
                "files_linked": report.linked,
                "seconds": round(report.seconds, 3),
                "problems": problems_json(report.problems),
            }
        )
        return
    if report.linked:
        output.note(
            f"{output.count_text(report.linked, 'file')} became a part of the store and read-only: "
            "change none of them in place, copy it first"
        )
    speed = ""
    if report.bytes_read and report.seconds:
        speed = f" ({output.size(int(report.bytes_read / report.seconds))}/s)"
    output.print_line(
        f"{name}: {output.count_text(report.files, 'file')}, "
        f"{output.size(report.logical_bytes)}; {report.files_unchanged:,} unchanged, "
        f"{output.size(report.bytes_read)} read in {report.seconds:.1f} s{speed}"
    )


@click.command()
@STORE
@snapshot_argument("where", "SNAPSHOT[:PATH]")
@click.argument(
    "directory",
    required=False,
    type=click.Path(path_type=Path),
    shell_complete=completed_with("directory"),
)
@click.option(
    "--tar",
    "tar_file",
    metavar="FILE",
    shell_complete=completed_with("file"),
    help="Write a tar stream to FILE ('-': standard output).",
)
@JSON
def export(
    store: Path, where: str, directory: Path | None, tar_file: str | None, as_json: bool
) -> None:
    """Restore SNAPSHOT, or the directory PATH of it, as DIRECTORY or as a tar stream.

    DIRECTORY must not exist or be empty. Holes, links, times, attributes and, for root, owners are
    as they were. What cannot be restored is reported and the exit code is 7 (3 when the store has
    lost it); everything else is restored.

    \b
    Examples:
      dedupfs export store/ step-1000 /data/restored
      dedupfs export store/ step-1000:optimizer /data/optimizer
      dedupfs export store/ step-1000 --tar - | ssh host tar -x
    """
    if (directory is None) == (tar_file is None):
        raise UsageError("say where to: either a DIRECTORY or --tar FILE")
    if tar_file == _STDOUT and sys.stdout.isatty():
        raise UsageError("a tar stream is not for a terminal: redirect standard output")
    with open_store(store) as opened, output.meter("exporting") as bar:
        place = find_directory(opened, where)
        roots = (place.info.root, place.entry)
        if directory is not None:
            from dedupfs.transfer.export import export_tree

            report = export_tree(
                opened,
                roots[0],
                directory,
                top=roots[1],
                progress=output.shown_on(bar),
                on_error=Complaints(),
            )
        else:
            assert tar_file is not None
            report = _export_tar(opened, roots, tar_file, bar)
    _finish_export(where, report, as_json, quiet=tar_file == _STDOUT)


def _export_tar(
    store: "Store", roots: tuple["TreeEntry", "TreeEntry"], tar_file: str, bar: output.Meter
) -> "ExportReport":
    from dedupfs.transfer.tar import export_tar

    try:
        with _tar_output(tar_file) as out:
            report = export_tar(
                store,
                roots[0],
                out,
                top=roots[1],
                progress=output.shown_on(bar),
                on_error=Complaints(),
            )
            out.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise SourceError(f"cannot write {tar_file}: {exc.strerror}") from exc
    return report


def _tar_output(tar_file: str) -> AbstractContextManager[IO[bytes]]:
    if tar_file == _STDOUT:
        return nullcontext(sys.stdout.buffer)
    return Path(tar_file).open("xb")


def _finish_export(where: str, report: "ExportReport", as_json: bool, *, quiet: bool) -> None:
    if as_json and not quiet:
        output.print_json(
            {
                "files": report.files,
                "directories": report.directories,
                "logical_bytes": report.logical_bytes,
                "seconds": round(report.seconds, 3),
                "problems": problems_json(report.problems),
            }
        )
    elif not quiet:
        output.print_line(
            f"{where}: {output.count_text(report.files, 'file')}, "
            f"{output.size(report.logical_bytes)} restored in {report.seconds:.1f} s"
        )
    if report.damaged:
        raise CorruptError(
            f"{output.count_text(report.damaged, 'file')} of {where} could not be restored: the "
            "store is damaged; dedupfs scrub tells more"
        )
    if report.problems:
        count = output.count_text(len(report.problems), "problem")
        raise SourceError(f"not everything of {where} could be restored ({count})")


COMMANDS: list[click.Command] = [import_, export]
