"""Whatever happens to a store: a clear line, a known exit code, no wrong byte, no more harm.

Goal: damage is found, named and contained (P5, P7). Method: a store with snapshots, views and every
kind of pack is copied and damaged at random; then every command runs, each in a process of its own
with a limit. A command works, or says why not in our own words. What is exported is what was
stored, or missing. What a repair could read right after the damage can still be read when all
commands are done, gc among them.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Scale
from tests.damage.harness import (
    SNAPSHOTS,
    Files,
    damage_files,
    exported,
    make_store,
    require_told,
    run,
)
from tests.maintenance.samples import make_directory

pytestmark = pytest.mark.unmeasured

AREAS = {
    "packs": "packs/*/*",
    "index": "index/*",
    "configuration": "dedupfs.json",
    "views": "views/*/*",
    "run": "run/*",
    "all": "*/**/*",
}
LOOKING = (
    ("ls",),
    ("ls", "-R", "one"),
    ("find", "*"),
    ("diff", "one", "two"),
    ("du",),
    ("stats",),
    ("view list",),
    ("check",),
    ("check", "--json"),
    ("check", "--repair", "--dry-run"),
    ("scrub",),
    ("scrub", "--json"),
    ("gc", "--dry-run"),
    ("rm", "--dry-run", "two"),
    ("cat", "one:large"),
    ("export", "two", "--tar", "-"),
)
CHANGING = (
    ("tag", "one", "a=b"),
    ("import", "MORE", "more"),
    ("commit", "frozen", "--view", "killed"),
    ("commit", "frozen2", "--view", "folded"),
    ("clone", "two", "two2"),
    ("rm", "copy"),
    ("gc",),
    ("view rm", "folded"),
    ("gc",),
)


@dataclass(frozen=True)
class Sample:
    """A sound store, what its snapshots hold, and a directory to import."""

    path: Path
    files: dict[str, Files]
    more: Path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    top = tmp_path_factory.mktemp("damage")
    path = make_store(top)
    files = {}
    for name in SNAPSHOTS:
        ended, files[name] = exported(path, name)
        assert ended.code == 0, str(ended)
    assert run("check", path).code == 0
    return Sample(path, files, make_directory(top / "more", "more"))


@pytest.fixture
def copy(sample: Sample, tmp_path: Path) -> Iterator[Path]:
    """Where a copy of the store is made."""
    yield tmp_path / "copy"
    shutil.rmtree(tmp_path / "copy", ignore_errors=True)


def arguments(words: tuple[str, ...], path: Path, more: Path) -> list[object]:
    first, *rest = words
    return [*first.split(), path, *(more if word == "MORE" else word for word in rest)]


def read_all(path: Path, sample: Sample) -> dict[str, Files]:
    """Export every snapshot; what comes out must be what went in."""
    found = {}
    for name, expected in sample.files.items():
        ended, files = exported(path, name)
        require_told(ended)
        wrong = {key for key, value in files.items() if expected.get(key) != value}
        assert not wrong, f"{name}: {wrong}\n{ended}"
        if ended.code == 0:
            assert files == expected, name
        found[name] = files
    return found


def repaired(path: Path, sample: Sample) -> dict[str, Files]:
    """Repair, demand that check agrees with what the repair said, and read everything."""
    repair = require_told(run("check", "--repair", path))
    check = require_told(run("check", path))
    if repair.code == 0:
        assert check.code == 0, f"{repair}\n{check}\n{check.out.decode()}"
    again = require_told(run("check", "--repair", path))
    assert again.code == (0 if check.code == 0 else repair.code), f"{repair}\n{again}"
    return read_all(path, sample)


def damage_and_look(sample: Sample, copy: Path, area: str, seed: int) -> None:
    chance = random.Random(f"{area} {seed}")
    shutil.copytree(sample.path, copy)
    files = sorted(path for path in copy.glob(AREAS[area]) if path.is_file())
    done = damage_files(files, chance, chance.choice([1, 1, 1, 3]))
    print(f"area={area} seed={seed}: {done}")  # noqa: T201 - how to see it again
    untouched = copy.with_name("untouched")
    shutil.copytree(copy, untouched)
    looked = [run(*arguments(words, copy, sample.more)) for words in LOOKING]
    for ended in looked:
        require_told(ended)
    read_all(copy, sample)
    for words in CHANGING:
        require_told(run(*arguments(words, copy, sample.more)))
    at_once = repaired(untouched, sample)
    later = repaired(copy, sample)
    for name in ("one", "two"):
        lost = at_once[name].keys() - later[name].keys()
        assert not lost, f"{name}: {lost} could have been repaired before the commands ran"
        if area in ("index", "views", "run", "configuration"):
            assert later[name] == sample.files[name] or area == "configuration"
    shutil.rmtree(copy)
    shutil.rmtree(untouched)


@pytest.mark.parametrize("area", list(AREAS))
def test_random_damage_is_told_and_contained(
    sample: Sample, copy: Path, scale: Scale, area: str
) -> None:
    first = 0 if os.environ.get("CI") == "true" else random.SystemRandom().randrange(1 << 32)
    for seed in range(first, first + scale(1, 200)):
        damage_and_look(sample, copy, area, seed)
