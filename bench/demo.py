"""What does dedupfs do? Shown on this machine's own files and on real checkpoints, and proven.

Command: ./dev demo, or python -m bench.demo [--scale N] [--no-mount]. Works in a temporary
directory that it takes away again, also on Ctrl-C. It calls the command `dedupfs` as a user would,
prints each command line, and compares hashes all the way: exit code 0 means that each promise shown
held.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import platform
import shutil
import signal
import sys
import sysconfig
import time
from pathlib import Path
from types import FrameType

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file

from bench.stage import (
    FAILED_OUTSIDE,
    MIB,
    BrokenPromiseError,
    CommandError,
    Row,
    Stage,
    disk_bytes,
    hash_of_file,
    human,
    note,
    promise,
    sample,
    say,
    scratch_directory,
    title,
    tree_bytes,
    why_no_mount,
)

CHECKPOINT_BYTES = 128 * MIB
STEPS = (1000, 2000, 3000, 4000)
FIRST, DELETED, LAST = STEPS[0], STEPS[1], STEPS[-1]
LAYERS = 20
FROZEN_LAYERS = 6
EDIT_BYTES = 4096
TREE_BYTES_MAX = 600 * MIB
TREE_ENTRIES_MAX = 60_000
ROOM_BYTES = 2500 * MIB
SLACK_BYTES = 8 * MIB
"""The index grows in pages and packs in blocks: what a promise on space leaves room for."""
MOUNT_FAILED = 8
"""Exit code of dedupfs: the mount could not be made (docs/cli.md)."""

Tensors = dict[str, NDArray[np.float32]]


def weights_name(step: int) -> str:
    return f"ckpts/step-{step}/model.safetensors"


# --- trees ----------------------------------------------------------------------------------------


def choose_tree(candidates: list[Path], scale: float) -> tuple[Path, int] | None:
    """Return the first tree that is there and of a size to be shown, and its size."""
    for directory in candidates:
        size = tree_bytes(directory, TREE_BYTES_MAX * scale, TREE_ENTRIES_MAX * scale)
        if size is not None:
            return directory, size
    return None


def import_trees(stage: Stage) -> dict[str, Path]:
    """Import real trees, and one of them twice; return which snapshot is of which directory."""
    title("Two trees that this machine has")
    stdlib = Path(sysconfig.get_path("stdlib"))
    python = [stdlib, *(stdlib / part for part in ("test", "idlelib", "asyncio", "json"))]
    system = ["/usr/share", "/usr/include", "/usr/share/doc", "/usr/include/linux", "/etc"]
    trees = {}
    for name, candidates in (("python", python), ("system", [Path(path) for path in system])):
        chosen = choose_tree(candidates, stage.scale)
        if chosen is None:
            note(f"none of a size to be shown: {', '.join(map(str, candidates))}")
            continue
        trees[name], size = chosen
        with stage.row(str(trees[name]), size):
            stage.dedupfs("import", "store", str(trees[name]), name, codes=(0, FAILED_OUTSIDE))
    if not trees:
        raise BrokenPromiseError("there is a tree to be imported")
    with stage.row("the last tree once more", size) as row:
        again = f"{name}-again"
        stage.dedupfs("import", "store", str(trees[name]), again, codes=(0, FAILED_OUTSIDE))
    promise(f"a second copy takes {human(row.stored_bytes)}", row.stored_bytes <= SLACK_BYTES)
    return trees


def compare_trees(stage: Stage, trees: dict[str, Path], mounted: bool, before_s: float) -> None:
    """Compare files of the imported trees with what the store shows of them."""
    shown = stage.directory / ("ckpts" if mounted else "exported")
    shown.mkdir(exist_ok=True)
    for name, directory in trees.items():
        if not mounted:
            place = f"exported/{name}"
            stage.dedupfs("export", "store", name, place, codes=(0, FAILED_OUTSIDE))
        started_s = time.perf_counter()
        files = sample(directory, before_s)
        equal = sum(hash_of_file(shown / name / f) == hash_of_file(directory / f) for f in files)
        note(f"{len(files)} files read in both places", started_s)
        promise(f"snapshot {name} reads like {directory}", equal == len(files))


# --- checkpoints ----------------------------------------------------------------------------------


def tensors_at(step: int, scale: float, frozen: Tensors) -> Tensors:
    """Return the weights at a step; the first step decides what the frozen layers hold."""
    rng = np.random.default_rng(step)
    columns = 1024
    rows = max(1, int(CHECKPOINT_BYTES * scale) // (4 * columns * LAYERS))
    tensors = dict(frozen)
    for layer in range(len(frozen), LAYERS):
        tensors[f"layers.{layer:02}.weight"] = rng.standard_normal((rows, columns), np.float32)
    if not frozen:
        frozen.update(list(tensors.items())[:FROZEN_LAYERS])
    return tensors


def save_one(stage: Stage, step: int, tensors: Tensors, hashes: dict[int, str]) -> int:
    """Save a checkpoint as a trainer does; return its size."""
    metadata = {"log": f"step {step}" + "; the loss falls" * (step // 100)}
    hashes[step] = hashlib.sha256(save(tensors, metadata)).hexdigest()
    path = stage.directory / weights_name(step)
    path.parent.mkdir(parents=True)
    started_s = time.perf_counter()
    save_file(tensors, path, metadata)
    size = path.stat().st_size
    note(f"save_file({weights_name(step)}): {size:,} bytes", started_s)
    return size


def save_checkpoints(stage: Stage, mounted: bool) -> dict[int, str]:
    """Save a family of checkpoints and make each a snapshot; return their hashes."""
    where = "through the mount" if mounted else "into a plain directory, then import"
    title(f"Checkpoints of a run, by the safetensors library, {where}")
    frozen: Tensors = {}
    hashes: dict[int, str] = {}
    unique_bytes = 0
    with stage.row(f"{len(STEPS)} checkpoints, 30 % frozen", 0) as row:
        for step in STEPS:
            fresh = not frozen
            tensors = tensors_at(step, stage.scale, frozen)
            unique_bytes += sum(t.nbytes for n, t in tensors.items() if fresh or n not in frozen)
            row.logical_bytes += save_one(stage, step, tensors, hashes)
            if mounted:
                stage.dedupfs("commit", f"ckpts/step-{step}", f"step-{step}")
            else:
                stage.dedupfs("import", "store", f"ckpts/step-{step}")
    note("each header has another length, so that no tensor lies where it lay in the last file")
    promise(
        f"each tensor is stored once: {human(row.logical_bytes)} take {human(row.stored_bytes)}",
        row.stored_bytes <= 1.02 * unique_bytes + SLACK_BYTES,
    )
    check_snapshots(stage, hashes)
    return hashes


def check_snapshots(stage: Stage, hashes: dict[int, str]) -> None:
    """Compare checkpoints in their snapshots with what was saved."""
    started_s = time.perf_counter()
    for step, saved in hashes.items():
        stored = stage.stored_hash(f"step-{step}:model.safetensors")
        if stored != saved:
            raise BrokenPromiseError(f"step-{step} has sha256 {saved}, not {stored}")
    note("dedupfs cat store step-...:model.safetensors | sha256sum", started_s)
    promise(f"what was saved is what the snapshot holds: {', '.join(map(str, hashes))}", True)


# --- editing --------------------------------------------------------------------------------------


def overwrite(path: Path) -> str:
    """Overwrite 4 KiB in the middle through a shared mapping; return the hash it must have then."""
    patch = np.random.default_rng(EDIT_BYTES).bytes(EDIT_BYTES)
    expected = bytearray(path.read_bytes())
    start = len(expected) // 2 + 123  # on no boundary of anything
    expected[start : start + EDIT_BYTES] = patch
    started_s = time.perf_counter()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), len(expected)) as mapping:
        mapping[start : start + EDIT_BYTES] = patch
        mapping.flush()
    note(f"mmap: {EDIT_BYTES} bytes overwritten at {start:,}", started_s)
    return hashlib.sha256(expected).hexdigest()


def edit(stage: Stage, mounted: bool, saved: str) -> None:
    """Edit a checkpoint in a second view, and freeze the result."""
    title("The same checkpoint in a second view, edited in place")
    original = stage.directory / weights_name(FIRST)
    path = stage.directory / "edit" / "model.safetensors"
    path.parent.mkdir()
    if mounted:
        stage.dedupfs("mount", "store", "edit", "--snapshot", f"step-{FIRST}", "--view", "edit")
    else:
        shutil.copyfile(original, path)
    with stage.row(f"step-{FIRST} with 4 KiB edited", path.stat().st_size) as row:
        expected = overwrite(path)
        if mounted:
            stage.dedupfs("commit", "edit", f"step-{FIRST}-edited")
        else:
            stage.dedupfs("import", "store", "edit", f"step-{FIRST}-edited")
    edited, untouched = hash_of_file(path), hash_of_file(original)
    note(f"{edited}  edit/model.safetensors")
    note(f"{untouched}  {weights_name(FIRST)}")
    promise("the edit is where it was made", edited == expected != saved)
    promise("and nowhere else", untouched == saved)
    stored = stage.stored_hash(f"step-{FIRST}-edited:model.safetensors")
    promise("the new snapshot holds it", stored == expected)
    check_snapshots(stage, {FIRST: saved})
    few = row.stored_bytes <= SLACK_BYTES + 0.01 * row.logical_bytes
    promise(f"it takes {human(row.stored_bytes)}", few)


def clone_and_diff(stage: Stage) -> None:
    title("Clone, and compare")
    size = (stage.directory / weights_name(LAST)).stat().st_size
    with stage.row(f"a clone of step-{LAST}", size) as row:
        stage.dedupfs("clone", "store", f"step-{LAST}", "best")
    promise("a clone takes no data", row.stored_bytes <= MIB)
    lines = stage.dedupfs("diff", "store", f"step-{FIRST}", f"step-{FIRST}-edited")
    promise("one line of difference", lines == "M model.safetensors\n")
    nothing = stage.dedupfs("diff", "store", f"step-{LAST}", "best")
    promise("none to the clone", nothing == "")


# --- the end --------------------------------------------------------------------------------------


def end_views(stage: Stage) -> None:
    """Unmount, and remove the views: they hold the checkpoints as the snapshots do."""
    title("The run is over: its views go, the snapshots stay")
    stage.dedupfs("umount", "edit")
    stage.dedupfs("umount", "ckpts")
    stage.dedupfs("view", "rm", "store", "default", "edit")
    stage.dedupfs("gc", "store")


def delete(stage: Stage, hashes: dict[int, str]) -> None:
    title("Deleting a snapshot gives back what only it held")
    stage.dedupfs("du", "store", f"step-{DELETED}")
    before = disk_bytes(stage.store)
    stage.dedupfs("rm", "store", f"step-{DELETED}")
    after = disk_bytes(stage.store)
    own_bytes = CHECKPOINT_BYTES * stage.scale * (LAYERS - FROZEN_LAYERS) / LAYERS
    promise(
        f"the store took {human(before)} and takes {human(after)}",
        before - after >= 0.95 * own_bytes - MIB,
    )
    check_snapshots(stage, {step: saved for step, saved in hashes.items() if step != DELETED})


def export(stage: Stage, saved: str) -> None:
    title("Out again as plain files, which needs no mount")
    stage.dedupfs("export", "store", f"step-{LAST}", "restored")
    path = stage.directory / "restored" / "model.safetensors"
    promise("the exported file is what was saved", hash_of_file(path) == saved)
    promise(f"safetensors loads all {LAYERS} tensors of it", len(load_file(path)) == LAYERS)


def show_table(rows: list[Row], stored_bytes: int) -> None:
    title("Copies against the store (before the deletion)")
    logical_bytes = sum(row.logical_bytes for row in rows)
    table = [*rows, Row("together, with the store itself", logical_bytes, stored_bytes)]
    width = max(len(row.what) for row in table)
    say(f"   {'':{width}} {'plain copies':>13} {'store':>11}")
    for row in table:
        say(f"   {row.what:{width}} {human(row.logical_bytes):>13} {human(row.stored_bytes):>11}")


# --- the whole ------------------------------------------------------------------------------------


def mount_if_possible(stage: Stage, why_not: str | None) -> bool:
    """Mount the store, or say in one line why not."""
    (stage.directory / "ckpts").mkdir()
    if why_not is None:
        title("The store as a directory")
        try:
            stage.dedupfs("mount", "store", "ckpts")
            return True
        except CommandError as exc:
            if exc.code != MOUNT_FAILED or "not permitted" not in exc.said:
                raise
            why_not = exc.said
    say(f"\nnothing can be mounted here: {why_not}; what needs no mount is shown")
    return False


def show(stage: Stage, why_not: str | None) -> None:
    before_s = time.time() - 2
    title("A store")
    stage.dedupfs("init", "store")
    trees = import_trees(stage)
    mounted = mount_if_possible(stage, why_not)
    compare_trees(stage, trees, mounted, before_s)
    hashes = save_checkpoints(stage, mounted)
    edit(stage, mounted, hashes[FIRST])
    clone_and_diff(stage)
    if mounted:
        end_views(stage)
    stored_bytes = disk_bytes(stage.store)
    delete(stage, hashes)
    export(stage, hashes[LAST])
    title("Is all well?")
    stage.dedupfs("check", "store")
    stage.dedupfs("scrub", "store")
    show_table(stage.rows, stored_bytes)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev demo", description="Show dedupfs at work.")
    parser.add_argument("--scale", type=float, default=1.0, help="size of everything (default: 1)")
    parser.add_argument("--no-mount", action="store_true", help="show what needs no mount")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    why_not = "--no-mount was given" if arguments.no_mount else why_no_mount()
    started_s = time.perf_counter()
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    say(f"dedupfs on {platform.platform()}, Python {platform.python_version()}, as {who}")
    try:
        with scratch_directory(ROOM_BYTES * arguments.scale) as directory:
            say(f"in {directory}, which is removed at the end")
            show(Stage(directory, arguments.scale), why_not)
    except (BrokenPromiseError, CommandError, OSError) as exc:
        say(f"\nFAILED: {exc}")
        return 1
    except KeyboardInterrupt:
        say("\ninterrupted; everything is taken away")
        return 130
    say(f"\nall that was shown held; {time.perf_counter() - started_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
