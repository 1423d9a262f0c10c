"""unlink(2) and rmdir(2): who may remove what, and what stays of it."""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
unlink of a TYPE
    make TYPE x
    mark .
    unlink x
    moved . = mc
    lstat x type = ENOENT
    unlink x = ENOENT

a TYPE that cannot be read or written can be removed
    make TYPE x
    mkdir d 777
    chmod d 777
    rename x d/x
    alice: unlink d/x
    ls d = -

ENOTDIR for rmdir of a TYPE
    make TYPE x
    rmdir x = ENOTDIR
    lstat x type = TYPE

EACCES for a TYPE where its directory forbids it
    mkdir d 777
    chmod d 777
    make TYPE d/x
    lchown d/x alice alice
    chmod d 755
    alice: unlink d/x = EACCES
    chmod d 766
    alice: unlink d/x = EACCES
    chmod d 733
    alice: unlink d/x

in a sticky directory a TYPE is removed only by its owner or the directory's
    mkdir d
    chown d bob bob
    chmod d 1777
    make TYPE d/x
    make TYPE d/y
    make TYPE d/z
    lchown d/x alice alice
    lchown d/y alice alice
    lchown d/z alice alice
    crew+alice+staff: unlink d/x = EPERM|EACCES
    alice: unlink d/x
    bob: unlink d/y
    root: unlink d/z
""",
    TYPE="regular fifo socket symlink char block",
)
CASES += read_cases(
    """
EISDIR or EPERM for unlink of a directory
    mkdir d
    unlink d = EISDIR|EPERM
    ls . = d

rmdir of an empty directory
    mkdir d
    stat . nlink = 3
    mark .
    rmdir d
    moved . = mc
    stat . nlink = 2
    rmdir d = ENOENT

ENOTEMPTY while a TYPE is in it
    mkdir d
    make TYPE d/x
    mark d .
    rmdir d = ENOTEMPTY|EEXIST
    moved d = -
    moved . = -
    rename d/x x
    rmdir d

EINVAL and ENOTEMPTY for . and ..
    mkdir d
    mkdir d/e
    rmdir d/e/. = EINVAL
    rmdir d/e/.. = ENOTEMPTY|EEXIST
    chdir d/e
    rmdir . = EINVAL
    rmdir ../../d = ENOTEMPTY|EEXIST
    unlink . = EISDIR|EPERM|EINVAL|EBUSY
    unlink .. = EISDIR|EPERM|EINVAL|EBUSY

a slash behind the name
    create f
    mkdir d
    symlink d s
    unlink f/ = ENOTDIR
    unlink d/ = EISDIR|EPERM|ENOTDIR
    rmdir s/ = ENOTDIR
    rmdir d/
    ls . = f,s

EACCES for a directory where the one above forbids it
    mkdir d
    mkdir d/e
    chown d/e alice alice
    alice: rmdir d/e = EACCES
    chmod d 777
    alice: rmdir d/e

in a sticky directory a directory is removed only by its owner or that of the one above
    mkdir d
    chown d bob bob
    chmod d 1777
    mkdir d/x
    mkdir d/y
    chown d/x alice alice
    chown d/y alice alice
    crew: rmdir d/x = EPERM|EACCES
    alice: rmdir d/x
    bob: rmdir d/y

EBUSY for what is mounted on
    chdir /
    rmdir proc = EBUSY|EACCES

a removed directory takes nothing more
    mkdir d
    open d O_RDONLY|O_DIRECTORY as f
    mark @f
    rmdir d
    moved @f = mc|c
    stat @f nlink = 0
    rename d e = ENOENT

names come back as other inodes
    create x
    open x O_RDONLY as f
    unlink x
    create x
    stat @f nlink = 0
    stat x nlink = 1

a directory of many names is removed when they are
    mkdir d
    MANY
    rmdir d
""",
    TYPE="regular dir fifo socket symlink",
    MANY=[
        "\n    ".join(
            [f"create d/{number}" for number in range(100)]
            + ["rmdir d = ENOTEMPTY"]
            + [f"unlink d/{number}" for number in range(100)]
        )
    ],
)


def test_remove(place: Place, case: Case) -> None:
    place.run(case)
