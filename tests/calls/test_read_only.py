"""A read-only mount refuses every change with EROFS, and shows the rest as it is.

The samples (conftest.py): f, s -> f, p (fifo), d/full, empty; root makes the calls, and others.
"""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CHANGES = [
    "chmod f 600",
    "chmod d 700",
    "chown f 1 1",
    "chown f -1 -1",
    "lchown s 1 1",
    "truncate f 0",
    "truncate f 4",
    "open f O_WRONLY",
    "open f O_RDWR",
    "open f O_RDONLY|O_TRUNC",
    "open new O_CREAT|O_RDONLY 644",
    "open . O_TMPFILE|O_RDWR 600",
    "create new",
    "mkdir new",
    "mkfifo new",
    "mknod new socket",
    "mknod new char",
    "symlink f new",
    "link f new",
    "unlink f",
    "unlink s",
    "unlink p",
    "rmdir empty",
    "rename f new",
    "rename f s",
    "rename d new",
    "renameat2 f s exchange",
    "utimens f now now",
    "utimens d 1000 2000",
    "lutimens s 1000 2000",
    "setxattr f user.a 1",
    "setfacl d default u::rwx,g::r-x,o::---",
]
READ_ONLY_CASES = read_cases(
    """
EROFS: CALL
    CALL = EROFS
    ls . = d,empty,f,p,s

ENOENT comes before EROFS: CHANGE
    CHANGE = ENOENT

EEXIST comes before EROFS: MAKE
    MAKE = EEXIST

everything can be read
    cat f = text
    cat s = text
    readlink s = f
    ls d = full
    lstat p type = fifo
    access f r = yes
    access f w = EROFS|no
    open f O_RDONLY
    open f O_CREAT|O_RDONLY 644
    open d O_RDONLY|O_DIRECTORY as f
    fsync @f
    statvfs . namemax = 255

a fifo is no part of the file system
    open p O_RDWR
    open p O_RDONLY|O_NONBLOCK as r
    open p O_WRONLY|O_NONBLOCK as w
    write @w hello

EROFS for others, too
    alice: create new = EROFS
    alice: open f O_WRONLY = EROFS
    alice: unlink f = EROFS
    alice: cat f = text
""",
    CALL=CHANGES,
    CHANGE=["chmod missing 600", "stat missing type", "truncate missing 0", "open missing O_RDWR"],
    MAKE=["mkdir d", "symlink x f", "mkfifo p", "open f O_CREAT|O_EXCL|O_RDWR 644", "link f s"],
)


def test_read_only(place: Place, case: Case) -> None:
    place.run(case)
