"""suid, sgid and capabilities go when a file's bytes or owner change, as on Linux.

The file system clears them itself (FUSE_HANDLE_KILLPRIV_V2), so each way to change bytes is here.
Source: chown(2), write(2), capabilities(7), the kernel's setattr_should_drop_sgid.
"""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

WRITES = [
    "write @f new",
    "write @f new 100",
    "truncate @f 3",
    "truncate @f 5",
    "truncate @f 9000",
    "copyrange @g @f 4",
    "reserve @f 0 8192",
]
PATHS = ["truncate x 0", "truncate x 5", "open x O_WRONLY|O_TRUNC", "open x O_RDWR|O_TRUNC"]
CASES = [
    *read_cases(
        """
a stranger's CALL takes suid and sgid away
    put source 12345678
    put x bytes
    chown x alice staff
    open x O_RDWR as f
    close @f
    chmod x 6777
    bob: open source O_RDONLY as g
    bob: open x O_RDWR as f
    stat x mode = 6777
    bob: CALL
    stat x mode = 0777
    stat @f mode = 0777

a stranger's CALL takes suid away where there is no sgid
    put source 12345678
    put x bytes
    chown x alice staff
    chmod x 4766
    bob: open source O_RDONLY as g
    bob: open x O_RDWR as f
    bob: CALL
    stat x mode = 0766

the owner's own CALL takes suid and sgid away
    put source 12345678
    put x bytes
    chown x alice staff
    chmod x 6755
    alice+staff: open source O_RDONLY as g
    alice+staff: open x O_RDWR as f
    alice+staff: CALL
    stat x mode = 0755

root's CALL takes neither
    put source 12345678
    put x bytes
    chown x alice staff
    chmod x 6755
    root: open source O_RDONLY as g
    root: open x O_RDWR as f
    root: CALL
    stat x mode = 6755

a member's CALL leaves sgid without group execution, which means locking
    put source 12345678
    put x bytes
    chown x alice staff
    chmod x 6766
    bob+staff: open source O_RDONLY as g
    bob+staff: open x O_RDWR as f
    bob+staff: CALL
    stat x mode = 2766

root's CALL takes capabilities all the same
    put source 12345678
    put x bytes
    chown x alice staff
    chmod x 755
    setcap x
    hascap x = yes
    root: open source O_RDONLY as g
    root: open x O_RDWR as f
    root: CALL
    hascap x = no
    stat x mode = 0755

the owner's CALL takes capabilities
    put source 12345678
    put x bytes
    chown x alice staff
    chmod x 755
    setcap x
    alice: open source O_RDONLY as g
    alice: open x O_RDWR as f
    alice: CALL
    hascap x = no
""",
        CALL=[*WRITES, *PATHS],
    ),
    *read_cases(
        """
HOW keeps suid, sgid and capabilities
    put x bytes
    chown x alice staff
    chmod x 6755
    setcap x
    open x O_RDWR as f
    HOW
    stat x mode = 6755
    hascap x = yes

HOW by the owner keeps suid, sgid and capabilities
    put x bytes
    chown x alice staff
    chmod x 6755
    setcap x
    alice+staff: open x O_RDWR as f
    alice+staff: HOW
    stat x mode = 6755
    hascap x = yes
""",
        HOW=["link x y", "rename x x", "utimens x now now", "read @f 5", "fsync @f", "access x rw"],
    ),
]
for user, whom in (
    ("root", "bob bob"),
    ("root", "alice alice"),
    ("root", "-1 staff"),
    ("root", "bob -1"),
    ("root", "-1 -1"),
    ("alice+staff", "-1 staff"),
    ("alice+staff", "alice staff"),
    ("alice+staff", "-1 alice"),
    ("alice+staff", "-1 -1"),
):
    CASES += read_cases(
        f"""
{user.split("+")[0]}'s chown to {whom} takes suid, sgid and capabilities of a file
    put x bytes
    chown x alice alice
    chmod x 6775
    setcap x
    {user}: chown x {whom}
    stat x mode = 0775
    hascap x = no

{user.split("+")[0]}'s chown to {whom} keeps sgid without group execution
    put x bytes
    chown x alice alice
    chmod x 6764
    {user}: chown x {whom}
    stat x mode = 2764

{user.split("+")[0]}'s chown to {whom} keeps what a directory has
    mkdir x
    chown x alice alice
    chmod x 7775
    {user}: chown x {whom}
    stat x mode = 7775

{user.split("+")[0]}'s chown to {whom} takes the bits of a fifo
    mkfifo x
    chown x alice alice
    chmod x 6775
    {user}: chown x {whom}
    stat x mode = 0775
"""
    )
CASES += read_cases(
    """
a stranger's write takes sgid even without group execution
    put x bytes
    chown x alice staff
    chmod x 2766
    bob: open x O_RDWR as f
    bob: write @f new
    stat x mode = 0766 mounts: 2766      # the protocol does not say whether the writer is a member

root's write takes capabilities and leaves suid and sgid
    put x bytes
    chmod x 6755
    setcap x
    root: open x O_RDWR as f
    root: write @f new
    stat x mode = 6755
    hascap x = no

a write of no bytes takes nothing
    put x bytes
    chown x alice staff
    chmod x 6777
    bob: open x O_RDWR as f
    mark x
    bob: write @f ''
    stat x mode = 6777
    moved x = -

a mode that a stranger's write took is gone for good
    put x bytes
    chown x alice staff
    chmod x 6777
    root: open x O_RDWR as f
    bob: open x O_RDWR as g
    root: write @f 1
    stat x mode = 6777
    bob: write @g 2
    stat x mode = 0777
    root: write @f 3
    stat x mode = 0777
    cat x = 23tes
    chmod x 6777
    bob: write @g 4
    stat x mode = 0777

bytes of a file without a name lose their privileges too
    put x bytes
    chmod x 6777
    bob: open x O_RDWR as f
    unlink x
    bob: write @f new
    stat @f mode = 0777
"""
)


def test_privileges(place: Place, case: Case) -> None:
    place.run(case)
