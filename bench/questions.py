"""Every question that the benchmarks ask, with its target. The one table; measures nothing."""

from bench.results import Question, Target

KIB, MIB = 1 << 10, 1 << 20


def _most(factor: float, of: str = "") -> Target:
    return Target("<=", factor, of)


def _least(factor: float, of: str = "") -> Target:
    return Target(">=", factor, of)


def _rate(key: str, text: str, unit: str, *targets: Target) -> Question:
    return Question(key, text, unit, targets, more_is_better=True)


OVERLAY = "fuse-overlayfs"

_ALL = (
    Question("view-tree", "new writable view of a tree: time", "ms", (_most(10),)),
    Question("view-tree-disk", "new writable view of a tree: disk", "B", (_most(64 * KIB),)),
    Question("view-file", "new writable view of a checkpoint: time", "ms", (_most(10),)),
    Question("view-file-disk", "new writable view of a checkpoint: disk", "B", (_most(64 * KIB),)),
    Question("overwrite", "4 KiB changed in a large file, fsync: time", "ms", (_most(5),)),
    Question("overwrite-disk", "4 KiB changed in a large file: disk", "B", (_most(512 * KIB),)),
    _rate("read-cold", "sequential read, cold", "MB/s", _least(0.9, "native")),
    _rate("read-warm", "sequential read, warm", "MB/s", _least(1.2, OVERLAY)),
    _rate("random-cold", "random 4 KiB reads, cold", "/s", _least(0.7, "native")),
    _rate("random-warm", "random 4 KiB reads, warm", "/s", _least(1, OVERLAY)),
    Question("find-cold", "find -size, cold", "s", (_most(1, "native"),)),
    Question("find-warm", "find -size, warm", "s", (_most(0.25, OVERLAY),)),
    Question("grep-cold", "grep -r, cold", "s", (_most(1, "native"),)),
    Question("grep-warm", "grep -r, warm", "s", (_most(0.4, OVERLAY),)),
    Question("git-cold", "git status, cold", "s", (_most(1.5, "native"),)),
    Question("git-warm", "git status, warm", "s", (_most(2, "native"),)),
    _rate("write-1m", "write new data in 1 MiB pieces, fsync", "MB/s", _least(0.6, "native")),
    _rate("write-4k", "write new data in 4 KiB pieces, fsync", "MB/s", _least(0.6, "native")),
    _rate("write-known", "write data that the store has, fsync", "MB/s", _least(1.2, "native")),
    _rate("untar", "untar many small files", "files/s", _least(4000), _least(3, OVERLAY)),
    _rate("remove", "rm -rf of them", "files/s", _least(6000)),
    _rate("import-new", "import of a checkpoint family, new", "MB/s", _least(0.9, "cp -a")),
    _rate("import-again", "import of it again, unchanged", "MB/s"),
    _rate("import-files", "import of unchanged files again", "files/s", _least(50_000)),
    Question("import-next", "import of the next snapshot of a tree", "s", (_most(0.4),)),
    Question("stored-bytes", "12 snapshots of the tree: disk", "B", (_most(85 * MIB),)),
    Question("stored-inodes", "12 snapshots of the tree: inodes", "", (_most(49),)),
    Question("copies-time", "one more writable copy of a changing tree: time", "ms", (_most(20),)),
    Question(
        "copies-disk",
        "20 snapshots of the tree, 20 writable copies: disk",
        "B",
        (_most(1.03, "one copy and the changes"),),
    ),
    Question("copies-inodes", "20 snapshots, 20 writable copies: inodes", "", (_most(49),)),
    Question("copies-leaks", "files that a write into another copy changed", "", (_most(0),)),
    Question("job", "a build in a view of its own, until nothing is left", "s"),
    Question(
        "mount-large",
        "mount of 1,000 snapshots, 10^6 files, until ls answers",
        "ms",
        (_most(350), _most(1.2, "dedupfs, empty store")),
    ),
    Question("memory", "memory after find over 10^6 files", "B", (_most(150 * MIB),)),
)

QUESTIONS = {question.key: question for question in _ALL}
