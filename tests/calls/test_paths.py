"""What can be wrong with a path is wrong for every call that takes one.

Method: the cross product of calls and faulty paths. ``SEES`` are calls that need what the path
names, ``MAKES`` those that make it; W stands for the path.
"""

import pytest

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

PLACES = ("native", "mount", "user")  # a snapshot's directories are found like any others
SEES = [
    "chmod W 644",
    "truncate W 0",
    "open W O_RDONLY",
    "open W O_RDWR",
    "unlink W",
    "rename W new",
    "link W new",
    "utimens W now now",
    "lutimens W now now",
    "stat W type",
    "lstat W type",
    "getxattr W user.a",
    "setxattr W user.a 1",
    "statvfs W namemax",
    "readlink W",
]
SEES_AS_ROOT = ["chown W -1 -1", "lchown W 0 0"]
SEES_DIRECTORY = ["rmdir W", "ls W", "chdir W"]
MAKES = [
    "create W",
    "open W O_CREAT|O_WRONLY 644",
    "mkdir W",
    "mkfifo W",
    "mknod W socket",
    "symlink target W",
    "link old W",
    "rename old W",
]
MAKES_AS_ROOT = ["mknod W char"]
ALL = [*SEES, *SEES_AS_ROOT, *SEES_DIRECTORY, *MAKES, *MAKES_AS_ROOT]


def with_path(calls: list[str], path: str) -> list[str]:
    return [call.replace("W", path) if "O_" not in call else _opened(call, path) for call in calls]


def _opened(call: str, path: str) -> str:
    first, _, rest = call.partition(" W ")
    return f"{first} {path} {rest}"


CASES = [
    *read_cases(
        """
ENOTDIR: CALL
    create old
    create file
    CALL = ENOTDIR
""",
        CALL=with_path(ALL, "file/x"),
    ),
    *read_cases(
        """
ENOTDIR behind a file and a slash: CALL
    create file
    CALL = ENOTDIR
""",
        CALL=with_path([*SEES[:6], "stat W type", "setxattr W user.a 1"], "file/"),
    ),
    *read_cases(
        """
ENOENT below a missing directory: CALL
    create old
    CALL = ENOENT
""",
        CALL=with_path(ALL, "missing/x"),
    ),
    *read_cases(
        """
ENOENT behind a dangling link: CALL
    create old
    symlink missing dangling
    CALL = ENOENT
""",
        CALL=with_path(ALL, "dangling/x"),
    ),
    *read_cases(
        """
ENOENT: CALL
    CALL = ENOENT
""",
        CALL=with_path([*SEES, *SEES_AS_ROOT, *SEES_DIRECTORY], "missing"),
    ),
    *read_cases(
        """
ENOENT for no path at all: CALL
    create old
    CALL = ENOENT
""",
        CALL=with_path(ALL, "''"),
    ),
    *read_cases(
        """
ELOOP: CALL
    create old
    symlink one two
    symlink two one
    CALL = ELOOP
""",
        CALL=with_path(ALL, "one/x"),
    ),
    *read_cases(
        """
EACCES below a directory that may not be searched: CALL
    mkdir d
    create old
    create d/x 666
    alice: CALL = EACCES
""".replace("    create d/x 666\n", "    mkdir d/sub 777\n    create d/x 666\n    chmod d 644\n"),
        CALL=with_path([*SEES, *SEES_AS_ROOT], "d/x"),
    ),
    *read_cases(
        """
EACCES below a directory that its own owner may not search: CALL
    mkdir d
    mkdir d/x
    chown d alice alice
    chmod d 6
    alice: CALL = EACCES
    chmod d 755
    alice: stat d/x type = dir
""",
        CALL=with_path([*SEES_DIRECTORY, "stat W type"], "d/x"),
    ),
    *read_cases(
        """
EACCES in a directory that may not be written: CALL
    mkdir d 755
    alice: create old
    alice: CALL = EACCES|EPERM
    alice: stat d/x type = ENOENT
""",
        CALL=with_path(MAKES, "d/x"),
    ),
    *read_cases(
        """
EACCES in a directory that may be written but not searched: CALL
    mkdir d 755
    alice: create old
    chmod d 766
    alice: CALL = EACCES
""",
        CALL=with_path(MAKES, "d/x"),
    ),
    *read_cases(
        """
EEXIST: CALL
    create old
    create x
    mkdir dir
    CALL = EEXIST
""",
        CALL=[
            *with_path([i for i in MAKES if not i.startswith(("open", "rename"))], "x"),
            *with_path([i for i in MAKES if not i.startswith(("open", "rename"))], "dir"),
        ],
    ),
    *read_cases(
        """
EEXIST even where a link leads nowhere: CALL
    create old
    symlink nowhere x
    CALL = EEXIST
    lstat nowhere type = ENOENT
""",
        CALL=with_path([i for i in MAKES if not i.startswith(("open", "rename"))], "x"),
    ),
    *read_cases(
        """
a name of 255 bytes: CALL
    create old
    CALL
    lstat {name255} nlink = 1|2
""",
        CALL=with_path(MAKES, "{name255}"),
    ),
    *read_cases(
        """
a path of 4095 bytes: CALL
    create old
    CALL
    lstat p nlink = 1|2
""",
        CALL=with_path(MAKES, "{path4095}"),
    ),
    *read_cases(
        """
ENAMETOOLONG for a name of 256 bytes: CALL
    create old
    CALL = ENAMETOOLONG
""",
        CALL=[*with_path(ALL, "{name256}"), *with_path(ALL, "{name256}/x")],
    ),
    *read_cases(
        """
ENAMETOOLONG for a path of 4096 bytes: CALL
    create old
    CALL = ENAMETOOLONG
""",
        CALL=with_path(ALL, "{path4096}"),
    ),
    *read_cases(
        """
EFAULT: CALL
    create old
    CALL = EFAULT
""",
        CALL=[
            f"fault {call}"
            for call in (
                "chmod BAD 420",
                "chown BAD 0 0",
                "lchown BAD 0 0",
                "truncate BAD 0",
                "open BAD 0",
                "open BAD 66 420",
                "mkdir BAD 493",
                "mknod BAD 4516 0",
                "unlink BAD",
                "rmdir BAD",
                "link BAD new",
                "link old BAD",
                "rename BAD new",
                "rename old BAD",
                "symlink BAD new",
                "symlink target BAD",
                "utimensat -100 BAD 0 0",
                "utimensat -100 old BAD 0",
                "readlink old BAD 0 0",
                "setxattr old user.a BAD 1 0",
                "statvfs BAD 0",
            )
            if not call.startswith(("readlink", "statvfs"))
        ],
    ),
]


def test_a_path(place: Place, case: Case) -> None:
    place.run(case)


def test_the_table_is_read_as_written() -> None:
    """The reader of tables itself: users, expectations, known differences, variables."""
    text = """
alice: a case of KIND     # and a comment
    make KIND x
    bob+staff: rename x y    = EACCES|EPERM
    stat x mode              = 0644 mounts: 0600
"""
    one, two = read_cases(text, KIND="fifo char")
    assert str(one) == "alice: a case of fifo"
    assert [step.who for step in one.steps] == ["alice", "bob+staff", "alice"]
    assert [(step.native, step.mounted) for step in one.steps] == [
        (None, None),
        ("EACCES|EPERM", "EACCES|EPERM"),
        ("0644", "0600"),
    ]
    assert one.steps[1].words == ("rename", "x", "y")
    assert (one.needs_root, one.privileged, two.privileged) == (True, False, True)
    with pytest.raises(AssertionError, match="same name"):
        read_cases("one\n    ls .\n\none\n    ls .")
