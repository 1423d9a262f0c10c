"""chown(2): who may give what to whom; suid, sgid and capabilities that go with it are in
test_privileges.py."""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
root gives a TYPE away
    make TYPE x
    mark x .
    chown x alice staff
    stat x user,group = alice,staff
    moved x = c
    moved . = -
    chown x bob -1
    stat x user,group = bob,staff
    chown x -1 crew
    stat x user,group = bob,crew
    chown x 4294967294 4294967294
    stat x user,group = 4294967294,4294967294

chown follows a symlink, lchown does not
    create x
    symlink x s
    chown s alice alice
    stat x user = alice
    lstat s user = root
    lchown s bob staff
    stat x user = alice
    lstat s user,group = bob,staff

chown by descriptor, also without a name
    open x O_CREAT|O_RDWR 600 as f
    chown @f bob -1
    stat x user = bob
    unlink x
    chown @f alice staff
    stat @f user,group,nlink = alice,staff,0

an owner gives a TYPE to any group of his, and to no other
    make TYPE x
    chown x alice alice
    mark x
    alice+staff: chown x -1 crew = EPERM
    alice+staff: chown x bob -1 = EPERM
    alice+staff: chown x bob staff = EPERM
    moved x = -
    alice+staff: chown x -1 staff
    stat x user,group = alice,staff
    alice/crew: chown x alice crew
    stat x user,group = alice,crew

somebody else changes nothing of a TYPE
    make TYPE x
    chown x alice staff
    bob+staff: chown x bob -1 = EPERM
    bob+staff: chown x -1 staff = EPERM
    bob+staff: chown x alice staff = EPERM
    stat x user,group = alice,staff

nobody but its owner touches a symlink
    symlink nowhere s
    lchown s alice alice
    bob: lchown s bob bob = EPERM
    alice+staff: lchown s -1 staff
    lstat s user,group = alice,staff

chown to nobody and no group moves ctime like on any Linux file system
    create x
    mark x
    chown x -1 -1
    moved x = c

a KIND that a user makes is his, and his first group's
    bob/staff+crew: make KIND x
    lstat x user,group = bob,staff

all names of a file have its new owner
    create x
    link x y
    chown y alice staff
    stat x user,group,nlink = alice,staff,2
""",
    TYPE="regular dir fifo char block socket",
    KIND="regular dir fifo socket symlink",
)


def test_chown(place: Place, case: Case) -> None:
    place.run(case)
