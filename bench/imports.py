"""Does an import cost little, and is nothing stored twice?

Speed is compared with ``cp -a`` (alone, and with the sync that makes a copy durable, which an
import is); space with what ``cp`` and ``rsync --link-dest`` need for the same snapshots.
"""

import json
import os
from pathlib import Path

from bench.datasets import Scale, change_files, checkpoint_family, noise_file, small_tree
from bench.harness import (
    Report,
    Result,
    Variant,
    compare,
    dedupfs,
    disk_bytes,
    file_count,
    remove,
    run,
)

CHECKPOINT_BYTES = 512 << 20
SNAPSHOTS = 10
CHANGED = 20


def measure(report: Report, directory: Path, scale: Scale, rounds: int) -> None:
    """Answer all questions of this script."""
    tree = small_tree(directory / "tree", scale.count(12_000))
    large = directory / "large"
    large.mkdir()
    noise_file(large / "model.bin", scale.bytes(1 << 30))
    for name, source in (("small files", tree), ("one large file", large)):
        _speed(report, directory, source, name, rounds)
    remove(large)
    _snapshots(report, directory, tree)
    remove(tree)
    _family(report, directory, scale)


# --- speed ----------------------------------------------------------------------------------------


def _speed(report: Report, directory: Path, source: Path, what: str, rounds: int) -> None:
    store, copy = directory / "store", directory / "copy"
    run("cp", "-a", source, copy)  # from here on the source is in the page cache for everybody
    remove(copy)
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    count = sum(path.is_file() for path in source.rglob("*"))
    note = f"{size / 1e6:.0f} MB in {count} files"

    def copied() -> None:
        run("cp", "-a", source, copy)

    def copied_durably() -> None:
        run("cp", "-a", source, copy)
        run("sync", "--file-system", directory)

    def without_copy() -> None:
        remove(copy)
        os.sync()

    def without_both() -> None:
        remove(store)
        without_copy()

    def with_empty_store() -> None:
        without_both()
        dedupfs("init", store)

    numbers = iter(range(1_000))

    def imported() -> None:
        dedupfs("import", store, source, f"import-{next(numbers)}")

    variants = [
        Variant("cp -a", copied, without_both),
        Variant("cp -a; sync", copied_durably, without_both),
        Variant("dedupfs import", imported, with_empty_store),
    ]
    report.add(compare(f"import new: {what}", "s", variants, rounds, note))
    with_empty_store()
    imported()
    variants = [
        Variant("cp -a", copied, without_copy),
        Variant("cp -a; sync", copied_durably, without_copy),
        Variant("dedupfs import", imported, without_copy),
    ]
    report.add(compare(f"import again, unchanged: {what}", "s", variants, rounds, note))
    without_both()


# --- space ----------------------------------------------------------------------------------------


def stats(store: Path) -> dict[str, int]:
    """Return what ``dedupfs stats`` says of a store, in bytes and counts."""
    found: dict[str, int] = json.loads(dedupfs("stats", store, "--json"))
    return found


def _taken(store: Path) -> int:
    """Return what records take in packs: chunks, trees and headers."""
    found = stats(store)
    return found["stored_bytes"] + found["metadata_bytes"] + found["header_bytes"]


def _snapshots(report: Report, directory: Path, tree: Path) -> None:
    store, copies, links = directory / "store", directory / "copies", directory / "links"
    copies.mkdir()
    links.mkdir()
    dedupfs("init", store)
    changed_bytes = 0
    first = 0
    for number in range(SNAPSHOTS):
        changed_bytes += change_files(tree, CHANGED, number) if number else 0
        dedupfs("import", store, tree, f"night-{number}")
        first = first or _taken(store)
        run("cp", "-a", tree, copies / str(number))
        base = (f"--link-dest={links / str(number - 1)}",) if number else ()
        run("rsync", "-a", *base, f"{tree}/", links / str(number))
    question = f"{SNAPSHOTS} snapshots of a tree with {CHANGED} files changed in each"
    values = {
        "cp -a": [float(disk_bytes(copies))],
        "rsync --link-dest": [float(disk_bytes(links))],
        "dedupfs": [float(disk_bytes(store))],
    }
    report.add(Result(f"{question}: on disk", "B", values))
    inodes = {
        "cp -a": [float(file_count(copies))],
        "rsync --link-dest": [float(file_count(links))],
        "dedupfs": [float(file_count(store))],
    }
    report.add(Result(f"{question}: inodes", "", inodes))
    report.add(
        Result(
            f"{question}: records in packs",
            "B",
            {
                "first snapshot + changed files": [float(first + changed_bytes)],
                "dedupfs, all snapshots": [float(_taken(store))],
            },
        )
    )
    before = _taken(store)
    run("cp", "-a", tree, copies / "exact")
    dedupfs("import", store, copies / "exact", "exact")
    added = {"the copy itself": [float(disk_bytes(copies / "exact"))]}
    added["dedupfs, records added"] = [float(_taken(store) - before)]
    report.add(Result("an exact copy of the tree", "B", added))
    for path in (store, copies, links):
        remove(path)


def _family(report: Report, directory: Path, scale: Scale) -> None:
    store, steps = directory / "store", directory / "steps"
    family = checkpoint_family(steps, count=8, file_bytes=scale.bytes(CHECKPOINT_BYTES))
    dedupfs("init", store)
    dedupfs("import", store, steps, "all")
    found = stats(store)
    note = f"{len(family.paths)} files, 30 % of the tensors frozen, each file's offsets shifted"
    report.add(
        Result(
            "checkpoint family: chunk bytes stored",
            "B",
            {
                "really new bytes": [float(family.new_bytes)],
                "cp": [float(family.logical_bytes)],
                "dedupfs": [float(found["stored_bytes"])],
            },
            note,
        )
    )
    before = _taken(store)
    copy = directory / "copy"
    run("cp", "-a", steps, copy)
    dedupfs("import", store, copy, "copy")
    report.add(
        Result(
            "checkpoint family: an exact copy adds",
            "B",
            {
                "the copy itself": [float(family.logical_bytes)],
                "dedupfs, records added": [float(_taken(store) - before)],
            },
        )
    )
    for path in (store, steps, copy):
        remove(path)
