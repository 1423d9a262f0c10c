"""chmod(2): who may, which bits stay, what it does to times; access(2) agrees with the mode."""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
chmod of a TYPE
    make TYPE x
    mark x .
    chmod x 7111
    stat x mode = 7111
    moved x = c
    moved . = -
    chmod x 0
    stat x mode = 0000

chmod through a symlink changes its target
    create x
    symlink x s
    chmod s 640
    stat x mode = 0640
    lstat s mode = 0777

chmod of an open file, by its descriptor, also without a name
    open x O_CREAT|O_RDWR 600 as f
    chmod @f 7751
    stat x mode = 7751
    unlink x
    chmod @f 604
    stat @f mode,nlink = 0604,0

chmod to the same mode still moves ctime
    create x 640
    mark x
    chmod x 640
    moved x = c

alice: the owner of a KIND may change its mode
    make KIND x
    chmod x 7321
    stat x mode,user = 7321,alice

EPERM for another user's TYPE
    make TYPE x
    root: chown x alice alice
    mark x
    bob: chmod x 777 = EPERM
    bob+alice: chmod x 777 = EPERM
    moved x = -
    alice: chmod x 700
    stat x mode = 0700

a member of the group keeps sgid on a TYPE, nobody else does
    make TYPE x
    chown x alice staff
    alice+staff: chmod x 2755
    stat x mode = 2755
    alice/staff: chmod x 2754
    stat x mode = 2754
    alice: chmod x 2755
    stat x mode = 0755
    root: chmod x 2755
    stat x mode = 2755

alice: an owner may make a directory sticky, and a file too
    mkdir d
    create f
    chmod d 1777
    chmod f 1644
    stat d mode = 1777
    stat f mode = 1644

permission is the class's alone, even where a later class would give it
    put x text
    chmod x 077
    chown x alice staff
    alice: access x r = no
    alice: open x O_RDONLY = EACCES
    chmod x 707
    bob/staff: access x r = no
    bob+staff: open x O_RDONLY = EACCES
    bob: access x rwx = yes
    root: access x rw = yes

supplementary groups count like the first one
    put x text
    chown x root staff
    chmod x 660
    bob: open x O_RDWR = EACCES
    bob+staff: open x O_RDWR
    bob/staff: open x O_RDWR
    bob+crew+staff: open x O_WRONLY
    bob+crew: open x O_RDONLY = EACCES

root reads and writes anything and runs only what somebody may run
    put x text
    chmod x 0
    root: access x rw = yes
    root: access x x = no
    chmod x 1
    root: access x x = yes
""",
    TYPE="regular dir fifo char block socket",
    KIND="regular dir fifo socket",
)
CASES += [
    case
    for bits, letters in {0o400: "r", 0o200: "w", 0o100: "x", 0o600: "rw", 0o500: "rx"}.items()
    for case in read_cases(
        f"""
alice: a mode of {bits:o} lets its owner do just that
    create x 600
    chmod x {bits:o}
    access x r = {"yes" if "r" in letters else "no"}
    access x w = {"yes" if "w" in letters else "no"}
    access x x = {"yes" if "x" in letters else "no"}
    open x O_RDONLY = {0 if "r" in letters else "EACCES"}
    open x O_WRONLY = {0 if "w" in letters else "EACCES"}
    open x O_RDWR = {0 if letters == "rw" else "EACCES"}
    open x O_RDONLY|O_TRUNC = {0 if letters == "rw" else "EACCES"}
"""
    )
]


def test_chmod(place: Place, case: Case) -> None:
    place.run(case)
