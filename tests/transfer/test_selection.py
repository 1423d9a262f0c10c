"""What an import leaves out: the same as git does, and the same whatever the last import took.

Method: trees and .gitignore files at random, at every level, from a few names, so that patterns
hit; git itself lists what it would take. Random selections are imported one after another, each
twice: trusting what the last import noted, and reading everything.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from dedupfs.errors import UsageError
from dedupfs.model import TreeEntry
from dedupfs.namespace.trees import TreeReader
from dedupfs.store import Store
from dedupfs.transfer.entries import entries_below
from dedupfs.transfer.ingest import IngestOptions, ingest_tree
from dedupfs.transfer.patterns import Patterns
from dedupfs.transfer.report import IngestReport, Problems
from dedupfs.transfer.scan import scan
from dedupfs.transfer.selection import CACHE_SIGNATURE, Listed, Selection, Selector
from dedupfs.transfer.sources import KnownListings, child_key
from tests.conftest import Scale
from tests.transfer.test_ingest import root_of
from tests.transfer.test_unchanged import Changes, tree_of
from tests.transfer.test_unchanged import make as make_known
from tests.transfer.trees import TRUSTING

NAMES = ["a", "b", "ab", "a.o", "b.o", "foo", "foo.o", "x y", "#b", "!a", "a]", "-", "b ", "\udcff"]
PIECES = [
    *(
        "a",
        "b",
        "o",
        ".",
        "foo",
        "*",
        "**",
        "?",
        "[ab]",
        "[!a]",
        "[^b-z]",
        "[a-",
        "[]a]",
        "[[:alpha:]]",
    ),
    *(
        "[[:digit:]x]",
        "[[:nope:]]",
        "\\a",
        "\\*",
        "\\",
        "#",
        "!",
        " ",
        "\\ ",
        "-",
        "[\\]]",
        "[a\\-z]",
        "\udcff",
    ),
]


def seed_of(number: int) -> int:
    seed = number if os.environ.get("CI") == "true" else random.randrange(1 << 32)
    print(f"{seed=}")  # noqa: T201
    return seed


def pattern(chance: random.Random) -> str:
    """Return a pattern without ``**`` in a name and ``\\/``: git has its own mind about them."""
    segments = []
    for _ in range(chance.choice([1, 1, 1, 2, 2, 3])):
        if chance.random() < 0.2:
            segments.append(chance.choice(["**", "*"]))
        elif chance.random() < 0.5:
            segments.append(chance.choice(NAMES))
        else:
            pieces = [chance.choice(PIECES) for _ in range(chance.randint(1, 3))]
            segments.append(re.sub(r"\*+", "*", "".join(pieces)).rstrip("\\") or "a")
    start = chance.choice(["", "", "", "/", "**/"])
    end = chance.choice(["", "", "", "/", "/**", "/*", " "])
    return chance.choice(["", "", "!"]) + start + "/".join(segments) + end


def make_tree(top: Path, chance: random.Random, depth: int = 3) -> None:
    top.mkdir(exist_ok=True)
    for name in chance.sample(NAMES, 7):
        if depth and chance.random() < 0.35:
            make_tree(top / name, chance, depth - 1)
        else:
            (top / name).write_text(name, errors="surrogateescape")
    if chance.random() < 0.4:
        write_patterns(top / ".gitignore", chance)


def write_patterns(path: Path, chance: random.Random) -> None:
    lines = [pattern(chance) for _ in range(chance.randint(1, 5))]
    text = chance.choice(["\n", "\n", "\r\n"]).join(lines) + chance.choice(["", "\n"])
    path.write_bytes(os.fsencode(text))


def git(top: Path, *arguments: str) -> bytes:
    environment = {"PATH": os.environ["PATH"], "HOME": str(top), "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(top), *arguments]
    return subprocess.run(command, check=True, capture_output=True, env=environment).stdout


def gits_files(top: Path) -> set[bytes]:
    listed = git(top, "ls-files", "--others", "--exclude-standard", "-z")
    return set(listed.split(b"\0")) - {b""}


def imported(
    store: Store, top: Path, name: str, selection: Selection, *, reread: bool = False
) -> tuple[IngestReport, list[tuple[bytes, TreeEntry]]]:
    options = IngestOptions(racy_ns=TRUSTING.racy_ns, reread=reread, selection=selection)
    report = ingest_tree(store, top, name, options=options)
    return report, list(entries_below(TreeReader(store), root_of(report)))


def taken(store: Store, top: Path, name: str, selection: Selection) -> list[str]:
    report, entries = imported(store, top, name, selection)
    assert not report.problems
    return sorted(os.fsdecode(path) for path, _ in entries)


def files_taken(store: Store, top: Path, name: str, selection: Selection) -> set[bytes]:
    report, entries = imported(store, top, name, selection)
    assert not report.problems
    return {path for path, entry in entries if not entry.is_directory}


def excluding(*patterns: str) -> Selection:
    return Selection(Patterns(map(os.fsencode, patterns)))


def make(top: Path, *paths: str) -> None:
    for path in paths:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(path)


# --- as git ---------------------------------------------------------------------------------------


@pytest.mark.program("git")
@pytest.mark.parametrize("number", range(2))
def test_gitignore_leaves_out_what_git_does(
    store: Store, source: Path, number: int, scale: Scale
) -> None:
    chance = random.Random(seed_of(number))
    for turn in range(scale(12, 2_000)):
        top = source / str(turn)
        make_tree(top, chance)
        git(top, "init", "-q")
        if chance.random() < 0.5:
            write_patterns(top / ".git" / "info" / "exclude", chance)
        expected = gits_files(top)
        found = files_taken(store, top, f"whole-{turn}", Selection(gitignore=True))
        assert found == expected, top
        inside = [path for path in top.iterdir() if path.is_dir() and path.name != ".git"]
        if inside and expected:
            part = chance.choice(inside)
            prefix = os.fsencode(part.name) + b"/"
            if any(path.startswith(prefix) for path in expected):
                below = {p.removeprefix(prefix) for p in expected if p.startswith(prefix)}
                found = files_taken(store, part, f"part-{turn}", Selection(gitignore=True))
                assert found == below, part


@pytest.mark.parametrize(
    ("lines", "path", "expected"),
    [
        (["foo"], "foo", True),
        (["foo"], "bar", None),
        (["foo/"], "foo", None),
        (["/foo"], "a/foo", None),
        (["a/foo"], "b/a/foo", None),
        (["foo", "!foo"], "foo", False),
        (["!foo", "foo"], "foo", True),
        (["# foo", "foo"], "# foo", None),
        ([r"\# foo"], "# foo", True),
        ([r"\!foo"], "!foo", True),
        (["foo  "], "foo", True),
        (["foo\\  "], "foo ", True),
        (["*.o"], "a/b/c.o", True),
        (["a/*.o"], "a/b/c.o", None),
        (["a/**/c.o"], "a/b/b/c.o", True),
        (["a/**/c.o"], "a/c.o", True),
        (["a/**"], "a", None),
        (["a/**"], "a/b/c", True),
        (["**/b/c"], "b/c", True),
        (["[[:upper:]]*"], "Foo", True),
        (["[[:upper:]]*"], "foo", None),
        (["f[!a-n]o"], "foo", True),
        (["f?o"], "f\xe9o", None),  # two bytes
        (["f\n*"], "f\no", True),
    ],
)
def test_a_pattern_says_what_gitignore_5_says(
    lines: list[str], path: str, expected: bool | None
) -> None:
    head, slash, name = path.rpartition("/")
    prefix, encoded = (head + slash).encode(), name.encode()
    patterns = Patterns(line.encode() for line in lines)
    assert patterns.excludes(encoded, prefix, is_directory=False) is expected


def test_no_pattern_takes_exponential_time() -> None:
    """A stranger's tree has a stranger's .gitignore; backtracking would take years."""
    in_name = Patterns([b"*a" * 40 + b"*b", b"[ab]*" * 40 + b"c"])
    assert in_name.excludes(b"a" * 255, b"", is_directory=False) is None
    in_path = Patterns([b"**/a/" * 40 + b"b", b"/**/*/a" * 40 + b"/**/c"])
    assert in_path.excludes(b"a", b"a/" * 1000, is_directory=False) is None


def test_nothing_comes_back_below_what_is_excluded(store: Store, source: Path) -> None:
    make(source, "out/kept", "out/deep/kept", "part/kept", "part/other")
    selection = excluding("/out", "!kept", "/part/*", "!/part/kept")
    assert taken(store, source, "one", selection) == ["part", "part/kept"]


def test_an_option_wins_over_gitignore_files(store: Store, source: Path) -> None:
    make(source, "a.o", "a.c", "b.c")
    (source / ".gitignore").write_text("*.o\n!b.c\n")
    selection = Selection(Patterns([b"*.c", b"!a.o", b".gitignore"]), gitignore=True)
    assert taken(store, source, "one", selection) == ["a.o"]


def test_git_itself_is_left_out_or_taken_whole(store: Store, source: Path) -> None:
    make(source, ".git/HEAD", ".git/hooks/a.sample", "a.sample", "a", "sub/.git", "sub/b.sample")
    (source / ".gitignore").write_text("*.sample\n!.git\n")
    left_out = Selection(gitignore=True)
    repository_inside = ["sub", "sub/b.sample"]  # rules end where another work tree begins
    assert taken(store, source, "one", left_out) == [".gitignore", "a", *repository_inside]
    kept = Selection(Patterns([b"!.git"]), gitignore=True)
    git_files = [".git", ".git/HEAD", ".git/hooks", ".git/hooks/a.sample"]
    assert taken(store, source, "two", kept) == [
        *git_files,
        ".gitignore",
        "a",
        "sub",
        "sub/.git",
        "sub/b.sample",
    ]


def test_a_part_of_a_work_tree_goes_by_all_of_its_rules(store: Store, source: Path) -> None:
    make(source, ".git/info/exclude", "sub/a.o", "sub/b", "sub/deep/c", "sub/deep/d")
    (source / ".gitignore").write_text("*.o\n/sub/deep/c\n")
    (source / ".git" / "info" / "exclude").write_text("d\n")
    assert taken(store, source / "sub", "one", Selection(gitignore=True)) == ["b", "deep"]


@pytest.mark.root
def test_a_repository_that_a_stranger_made_above_has_no_say(store: Store, source: Path) -> None:
    make(source, "sub/a", ".git/HEAD")
    (source / ".gitignore").write_text("*\n")
    selection = Selection(gitignore=True)
    assert taken(store, source / "sub", "ours", selection) == []
    os.chown(source / ".git", 12345, 12345)
    assert taken(store, source / "sub", "theirs", selection) == ["a"]


def test_a_gitignore_that_is_no_file_says_nothing(store: Store, source: Path) -> None:
    make(source, "a/a", "b/a", "c/a", "rules")
    (source / "rules").write_text("a\n")
    (source / "a" / ".gitignore").symlink_to("../rules")
    os.mkfifo(source / "b" / ".gitignore")
    (source / "c" / ".gitignore").mkdir()
    names = taken(store, source, "one", Selection(gitignore=True))
    assert {"a/a", "b/a", "c/a"} <= set(names)


# --- caches and lists -----------------------------------------------------------------------------


def test_of_a_cache_only_the_tag_is_taken(store: Store, source: Path) -> None:
    make(source, "cache/a", "cache/sub/b", "other/a")
    (source / "cache" / "CACHEDIR.TAG").write_bytes(CACHE_SIGNATURE + b"\n# made by a test\n")
    (source / "other" / "CACHEDIR.TAG").write_bytes(b"something else")
    names = taken(store, source, "one", Selection(exclude_caches=True))
    assert names == ["cache", "cache/CACHEDIR.TAG", "other", "other/CACHEDIR.TAG", "other/a"]


def listing(*paths: bytes) -> Listed:
    listed = Listed()
    for path in paths:
        listed.add(path)
    return listed


def test_only_what_is_listed_is_taken(store: Store, source: Path) -> None:
    make(source, "a/b/c", "a/b/d", "a/e", "f/g/h", "f/i", "j", "k")
    listed = listing(b"a/b/c", b"./f//g/", b"j")
    names = taken(store, source, "one", Selection(listed=listed))
    assert names == ["a", "a/b", "a/b/c", "f", "f/g", "f/g/h", "j"]
    assert len(taken(store, source, "all", Selection(listed=listing(b".")))) == 11


def test_what_is_listed_and_not_there_is_reported(store: Store, source: Path) -> None:
    make(source, "a/b", "c", "out/d", "e/f")
    (source / "link").symlink_to("a")
    listed = listing(b"a/b", b"a/none", b"c/none", b"link/b", b"none/at", b"out/x", b"e", b"e/none")
    selection = Selection(Patterns([b"out"]), listed=listed)
    report, entries = imported(store, source, "one", selection)
    assert [path for path, _ in entries] == [b"a", b"a/b", b"e", b"e/f"]
    missing = [b"a/none", b"c/none", b"e/none", b"link/b", b"none/at"]
    assert [problem.path for problem in report.problems] == missing


@pytest.mark.parametrize("path", [b"/etc/passwd", b"../x", b"a/../../x"])
def test_a_list_cannot_lead_outside(path: bytes) -> None:
    with pytest.raises(UsageError, match="no path below"):
        listing(path)


# --- the notes of the last import -----------------------------------------------------------------


def any_selection(source: Path, chance: random.Random) -> Selection:
    lines = [chance.choice(["one", "two", "x/", "/a", "*/y", "new*", "!new1*", "c/"])]
    kind = chance.randrange(5)
    if kind == 0:
        return Selection()
    if kind == 1:
        return Selection(gitignore=True, exclude_caches=True)
    if kind == 2:
        paths = [os.fsencode(path.relative_to(source)) for path in source.rglob("*")]
        count = min(len(paths), 4)
        return Selection(listed=listing(*chance.sample(sorted(paths), count)))
    return excluding(*lines)


def change_rules(source: Path, chance: random.Random) -> None:
    directories = [source, *sorted(path for path in source.rglob("*") if path.is_dir())]
    rules = chance.choice(directories) / ".gitignore"
    rules.write_text(chance.choice(["one\n", "two\n!one\n", "x/\n", "*\n!*/\n"]))


@pytest.mark.parametrize("number", range(2))
def test_another_selection_takes_over_nothing_wrong(
    store: Store, source: Path, number: int, scale: Scale
) -> None:
    chance = random.Random(seed_of(number))
    make_known(source)
    changes = Changes(source, chance)
    done: list[str] = []
    for step in range(scale(30, 300)):
        if chance.random() < 0.5:
            done.append(changes.step())
        if chance.random() < 0.3:
            change_rules(source, chance)
        selection = any_selection(source, chance)
        quick, _ = imported(store, source, f"trusting-{step}", selection)
        slow, _ = imported(store, source, f"reading-{step}", selection, reread=True)
        trees = [tree_of(store, root_of(report)) for report in (quick, slow)]
        assert trees[0] == trees[1], (done[-3:], selection)
        assert quick.problems == slow.problems
        if chance.random() < 0.5:  # the next one meets the notes of another selection
            imported(store, source, f"other-{step}", any_selection(source, chance))


def test_the_same_selection_takes_directories_over_unread(store: Store, source: Path) -> None:
    make_known(source)
    (source / "a" / ".gitignore").write_text("one\n")
    selection = Selection(Patterns([b"/c"]), gitignore=True)
    imported(store, source, "one", selection)
    assert unchanged_directories(store, source, selection) == 2
    assert unchanged_directories(store, source, Selection()) < 5
    report, _ = imported(store, source, "two", selection)
    assert (report.files_unchanged, report.bytes_read) == (report.files, 0)
    (source / "a" / ".gitignore").write_text("two\n")
    report, entries = imported(store, source, "three", selection)
    names = [path for path, _ in entries]
    assert b"a/x/one" in names
    assert b"a/x/two" not in names


def unchanged_directories(store: Store, source: Path, selection: Selection) -> int:
    """Return how many directories in ``source`` a scan finds as the last import left them."""
    fd = os.open(source, os.O_RDONLY)
    selector = Selector(selection, source, Problems([], None))
    known = KnownListings(store, os.fsencode(source))
    try:
        found = scan(fd, os.stat(store.path), known=known, selector=selector)
    finally:
        os.close(fd)
    tops = {child_key(known.top_key, name) for name in (b"a", b"b", b"c")}
    return len(tops & found.unchanged.keys())


def test_a_file_whose_other_name_is_left_out_is_one_of_its_own(store: Store, source: Path) -> None:
    make(source, "a")
    (source / "b").hardlink_to(source / "a")
    imported(store, source, "both", Selection())
    _, [(path, entry)] = imported(store, source, "one", excluding("b"))
    assert (path, entry.is_link, entry.nlink) == (b"a", False, 1)
    _, entries = imported(store, source, "both-again", Selection())
    assert [entry.is_link for _, entry in entries] == [True, True]


def test_what_is_left_out_is_not_opened(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(source, "out/file", "sub/out.o", "sub/in")
    opened: list[str] = []
    really = os.open

    def noted(path: str | bytes, *arguments: int, **options: int) -> int:
        opened.append(os.fsdecode(path))
        return really(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", noted)
        imported(store, source, "one", excluding("out", "*.o"))
    assert "sub" in opened
    assert not {"out", "out.o"} & set(opened)
