"""link(2): one inode under several names."""

import pytest

from tests.calls.conftest import Place, Places
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
two names of one TYPE
    make TYPE x
    lstat x nlink = 1
    mkdir d
    mark x . d
    link x d/y
    moved x = c
    moved . = -
    moved d = mc
    lstat d/y nlink,type = 2,TYPE
    link d/y z
    lstat x nlink = 3
    mark x d .
    unlink x
    moved . = mc
    moved d = -
    moved d/y x = c
    lstat z nlink = 2
    unlink d/y
    lstat z nlink,type = 1,TYPE
    unlink z
    lstat z nlink = ENOENT

attributes of a TYPE belong to all its names
    make TYPE x
    link x y
    chown y alice staff
    chmod y 4321
    stat x mode,user,group = 4321,alice,staff

a link to a symlink is the symlink's, unless it is to be followed
    create x
    symlink x s
    link s hard
    lstat hard type,nlink = symlink,2
    linkto s followed
    lstat followed type,nlink = regular,2

EEXIST leaves everything as it was
    put x one
    put y two
    mark x y .
    link x y = EEXIST
    link x . = EEXIST
    moved x = -
    moved y = -
    moved . = -
    cat y = two

EPERM for a directory
    mkdir d
    link d e = EPERM
    link . e = EPERM|EXDEV

EXDEV to another file system
    create x
    link x {other}/never = EXDEV
    lstat x nlink = 1

alice: EACCES where the target may not be written
    create x
    mkdir d 555
    link x d/y = EACCES
    lstat x nlink = 1

EPERM for a stranger's file that cannot be written (protected_hardlinks)
    create x 600
    alice: link x y = EPERM|0
    unlink x

a file that lost its last name gets none again
    open x O_CREAT|O_RDWR 644 as f
    unlink x
    linkto @f y = ENOENT
    stat @f nlink = 0

an open file gets a second name by its descriptor
    open x O_CREAT|O_RDWR 644 as f
    write @f abc
    linkto @f y
    unlink x
    cat y = abc
    stat @f nlink = 1

what is written under one name is read under the other
    put x one
    link x y
    open x O_RDWR as f
    open y O_RDWR as g
    write @f two
    read @g 9 = two
    truncate y 1
    read @f 9 = t

ENOENT for a name in a directory that is gone
    create x
    mkdir d
    open d O_RDONLY as f
    rmdir d
    link x d/y = ENOENT
""",
    TYPE="regular fifo char block socket",
)

EMLINK = read_cases(
    """
EMLINK for one name more than 65,000, which is the limit of ext4 too
    create x
    FIVE_THOUSAND_EACH
    stat x nlink = 65000
    link x y = EMLINK
    unlink x-0.7
    link x y
    link x z = EMLINK
""",
    FIVE_THOUSAND_EACH=[
        "\n    ".join([*(f"links x 5000 x-{i}" for i in range(12)), "links x 4999 x-12"])
    ],
)


def test_link(place: Place, case: Case) -> None:
    place.run(case)


@pytest.mark.long  # 65,000 links are made in half a minute
@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.parametrize("where", ["native", "mount"])
def test_as_many_links_as_can_be(places: Places, where: str) -> None:
    places.get(where).run(EMLINK[0])
