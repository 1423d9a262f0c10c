"""The commands ``checkout verify`` and ``checkout list``: which checkouts there are, and how.

Specified in docs/cli.md.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import JSON, STORE, completed_with, open_store
from dedupfs.cli.registered import IN_STORE, all_checkouts, checkout_at
from dedupfs.errors import SourceError

if TYPE_CHECKING:
    from dedupfs.checkout.verify import VerifyReport

FINDINGS_SHOWN_MAX = 100


@click.command()
@click.argument(
    "place",
    metavar="DIR|STORE",
    type=click.Path(path_type=Path),
    shell_complete=completed_with("directory"),
)
@click.option("--full", is_flag=True, help="Read and verify every byte.")
@IN_STORE
@JSON
def verify(place: Path, full: bool, store_path: Path | None, as_json: bool) -> None:
    """Find what is not as it was made in the checkout DIR, or in all checkouts of STORE.

    Names missing or changed, links that lead nowhere or whose target was written to; and says how
    many bytes are saved. What others added is told and no fault.

    \b
    Examples:
      dedupfs checkout verify /data/model
      dedupfs checkout verify store/ --full --json
    """
    from dedupfs.checkout.place import is_there
    from dedupfs.checkout.verify import DEDUPE, verify_checkout

    reports: list[VerifyReport] = []
    gone: list[str] = []
    if (place / "dedupfs.json").exists():
        with open_store(place) as opened:
            for manifest in all_checkouts(opened):
                directory = Path(os.fsdecode(manifest.directory))
                if is_there(manifest):
                    reports.append(verify_checkout(opened, manifest, directory, full=full))
                else:
                    gone.append(str(directory))
                    option = "--gone " if manifest.kind == DEDUPE else ""
                    output.note(
                        f"{directory} is gone; 'dedupfs checkout rm {option}--store {place} "
                        f"{manifest.number}' lets go of it"
                    )
    else:
        with checkout_at(place, store_path, to_change=False) as (opened, manifest):
            reports.append(verify_checkout(opened, manifest, place, full=full))
    if as_json:
        output.print_json([_verified_json(report) for report in reports])
    else:
        for report in reports:
            _print_verified(report)
    bad = [os.fsdecode(report.directory) for report in reports if not report.ok]
    if bad or gone:
        raise SourceError(
            f"{output.count_text(len(bad) + len(gone), 'checkout')} not as made: "
            + ", ".join([*bad, *gone])
        )


@click.command("list")
@STORE
@JSON
def list_(store: Path, as_json: bool) -> None:
    """List the checkouts of STORE."""
    from dedupfs.checkout.place import is_there

    rows: list[dict[str, output.Json]] = []
    with open_store(store) as opened:
        for manifest in all_checkouts(opened):
            shown = manifest.next or manifest.now
            assert shown is not None
            state = "unfinished" if manifest.next is not None else "complete"
            rows.append(
                {
                    "number": manifest.number,
                    "directory": output.text_of(manifest.directory),
                    "snapshot": shown.snapshot,
                    "path": output.text_of(shown.path),
                    "link": shown.link,
                    "linked_files": len(manifest.links),
                    "linked_bytes": sum(held.file_bytes for held in manifest.packs),
                    "created_ns": manifest.created_ns,
                    "state": state if is_there(manifest) else "gone",
                }
            )
    if as_json:
        output.print_json(rows)
        return
    output.print_table(
        ("NUMBER", "SNAPSHOT", "LINK", "LINKED", "STATE", "DIRECTORY"),
        [
            (
                str(row["number"]),
                f"{row['snapshot']}:{row['path']}" if row["path"] else str(row["snapshot"]),
                str(row["link"]),
                output.size(int(str(row["linked_bytes"]))),
                str(row["state"]),
                str(row["directory"]),
            )
            for row in rows
        ],
        right=(0, 3),
    )


def _verified_json(report: "VerifyReport") -> dict[str, output.Json]:
    assert report.shown is not None
    return {
        "number": report.number,
        "directory": output.text_of(report.directory),
        "snapshot": report.shown.snapshot,
        "link": report.shown.link,
        "ok": report.ok,
        "unfinished": report.unfinished,
        "files": report.files,
        "logical_bytes": report.logical_bytes,
        "saved_bytes": report.saved_bytes,
        "findings": [
            {"kind": found.kind, "path": output.text_of(found.path), "why": found.why}
            for found in report.findings
        ],
        "savings": [
            {
                "path": output.text_of(saving.path),
                "kind": saving.kind,
                "saved_bytes": saving.saved_bytes,
            }
            for saving in report.savings
        ],
    }


def _print_verified(report: "VerifyReport") -> None:
    assert report.shown is not None
    for found in report.findings[:FINDINGS_SHOWN_MAX]:
        why = f": {found.why}" if found.why else ""
        output.print_line(f"{found.kind}: {output.text_of(found.path)}{why}")
    if len(report.findings) > FINDINGS_SHOWN_MAX:
        output.print_line(f"and {len(report.findings) - FINDINGS_SHOWN_MAX:,} more (--json)")
    if report.unfinished:
        output.print_line("unfinished: 'dedupfs checkout update DIR' goes on")
    output.print_line(
        f"{output.text_of(report.directory)}: {output.count_text(report.files, 'file')}, "
        f"{output.size(report.logical_bytes)} of {report.shown.snapshot}, "
        f"{output.size(report.saved_bytes)} saved"
    )
