"""open(2): flags, permissions, files without a name, and what each type answers."""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
O_CREAT makes a file of the maker's, under the umask
    umask 27
    mark .
    alice/crew: open x O_CREAT|O_WRONLY 666
    stat x type,mode,user,group,size,nlink = regular,0640,alice,crew,0,1
    moved . = mc

O_CREAT opens what is there and changes nothing
    put x text
    chmod x 640
    mark x .
    open x O_CREAT|O_RDWR 777
    stat x mode,size = 0640,4
    moved x = -
    moved . = -

O_CREAT through a dangling symlink makes its target, with O_EXCL it does not
    symlink target s
    open s O_CREAT|O_EXCL|O_WRONLY 644 = EEXIST
    lstat target type = ENOENT
    open s O_CREAT|O_WRONLY 644
    lstat target type = regular

O_EXCL without O_CREAT opens
    create x
    open x O_EXCL|O_RDWR

O_TRUNC of FILLED
    put x FILLED
    mark x .
    open x O_WRONLY|O_TRUNC
    stat x size = 0
    moved x = mc
    moved . = -

O_TRUNC of a file without bytes moves its times all the same
    create x
    mark x
    open x O_WRONLY|O_TRUNC
    moved x = mc
    mark x
    open x O_WRONLY|O_CREAT|O_TRUNC 644
    moved x = mc
    mark x
    open x O_WRONLY|O_CREAT 644
    moved x = -

O_TRUNC|O_RDONLY truncates on Linux, for who may write
    put x text
    chmod x 644
    alice: open x O_RDONLY|O_TRUNC = EACCES
    stat x size = 4
    root: open x O_RDONLY|O_TRUNC
    stat x size = 0

O_APPEND writes at the end, wherever another writer has put it
    put x 123
    open x O_WRONLY|O_APPEND as f
    open x O_WRONLY|O_APPEND as g
    write @f a
    write @g b
    write @f c
    truncate x 1
    write @g d
    cat x = 1d

EISDIR for writing to a directory
    mkdir d
    open d O_WRONLY = EISDIR
    open d O_RDWR = EISDIR
    open d O_RDONLY|O_TRUNC = EISDIR
    open d O_CREAT|O_RDONLY 644 = EISDIR
    open . O_WRONLY = EISDIR
    open d O_RDONLY

ENOTDIR for O_DIRECTORY on a NONE
    make NONE x
    open x O_RDONLY|O_DIRECTORY = ENOTDIR

O_PATH opens a TYPE, and only for looking at it
    make TYPE x
    open x O_PATH|O_NOFOLLOW as f
    stat @f type = TYPE
    chmod @f 600 = EBADF
    truncate @f 0 = EBADF|EINVAL

ELOOP for O_NOFOLLOW on a symlink
    create x
    symlink x s
    open s O_RDONLY|O_NOFOLLOW = ELOOP
    open s O_RDONLY|O_NOFOLLOW|O_CREAT 644 = ELOOP
    open x O_RDONLY|O_NOFOLLOW

forty symlinks are followed, one more is not
    create s0
    LINKS
    open s40 O_RDONLY
    open s41 O_RDONLY = ELOOP
    stat s41 type = ELOOP
    lstat s41 type = symlink

ENXIO for a fifo that nobody reads, and none for one that somebody reads
    mkfifo p
    open p O_WRONLY|O_NONBLOCK = ENXIO
    open p O_RDONLY|O_NONBLOCK as r
    open p O_WRONLY|O_NONBLOCK as w
    write @w hello
    open p O_RDWR

ENXIO for a socket
    bind s
    open s O_RDONLY = ENXIO
    open s O_RDWR = ENXIO

a device works where the mount lets devices work, which ours does not (nodev)
    mknod c char 666
    open c O_RDWR = 0 mounts: EACCES

O_TMPFILE makes a file without a name; pyfuse3 has no handler for it
    open . O_TMPFILE|O_RDWR 600 = 0 mounts: EOPNOTSUPP

EACCES in a directory that may not be written, unless the file is there
    mkdir d 755
    create d/x
    chmod d/x 666
    alice: open d/y O_CREAT|O_RDWR 644 = EACCES
    alice: open d/x O_CREAT|O_RDWR 644
    alice: open d/x O_CREAT|O_EXCL|O_RDWR 644 = EEXIST

EACCES for another user's file in a sticky directory that all may write (protected_regular)
    mkdir d
    chmod d 1777
    alice: create d/x
    chmod d/x 666
    bob: open d/x O_CREAT|O_RDWR 644 = EACCES|0

a descriptor keeps what it was opened for
    put x text
    chmod x 666
    alice: open x O_RDWR as f
    chmod x 0
    chown x bob bob
    alice: write @f more
    alice: read @f 9 = more
    alice: open x O_RDONLY = EACCES

more than 2 and 4 GiB
    open x O_CREAT|O_RDWR 644 as f
    write @f a 2147483647
    write @f b 2147483648
    write @f c 4294967296
    stat x size = 4294967297
    read @f 3 2147483647 = ab.
    read @f 3 4294967295 = .c
    unlink x

EFBIG for a byte behind the last that a file can have
    open x O_CREAT|O_RDWR 644 as f
    write @f a 9223372036854775807 = EFBIG|EINVAL
    stat x size = 0

the bytes of an open file outlive its name
    open x O_CREAT|O_RDWR 644 as f
    write @f 123
    mark @f .
    unlink x
    moved @f = c
    moved . = mc
    stat @f nlink,size = 0,3
    open x O_CREAT|O_EXCL|O_RDWR 644 as g
    write @g other
    write @f 456 3
    read @f 9 = 123456
    truncate @f 2
    read @f 9 = 12
    setxattr @f user.a b
    getxattr @f user.a = b
    getxattr x user.a = ENODATA
    utimens @f 1.5 2.25
    stat @f atime,mtime = 1.500000000,2.250000000
    fsync @f
    cat x = other

a name that is replaced leaves its open file alone
    put x old
    put y new
    open x O_RDWR as f
    rename y x
    stat @f nlink,size = 0,3
    write @f 123
    read @f 9 = 123
    cat x = new

ESTALE never: an open directory outlives its name
    mkdir d
    open d O_RDONLY|O_DIRECTORY as f
    rmdir d
    stat @f nlink = 0
    ls @f = -
    chmod @f 700
    stat @f mode = 0700
    mkdir d
    create d/x
    ls @f = -
""",
    TYPE="regular fifo socket symlink",
    NONE="regular fifo socket",
    FILLED=["text", "x" * 3000],
    LINKS=["\n    ".join(f"symlink s{number} s{number + 1}" for number in range(41))],
)
CASES += [
    case
    for mode, permitted in ((0o644, "O_RDONLY"), (0o622, "O_WRONLY"), (0o666, "O_RDWR"))
    for case in read_cases(
        f"""
a mode of {mode:o} lets a stranger open for {permitted}
    put x text
    chmod x {mode:o}
    alice: open x O_RDONLY = {0 if mode & 4 else "EACCES"}
    alice: open x O_WRONLY = {0 if mode & 2 else "EACCES"}
    alice: open x O_RDWR = {0 if mode & 6 == 6 else "EACCES"}
    alice: open x O_WRONLY|O_APPEND = {0 if mode & 2 else "EACCES"}
    root: open x O_RDWR
"""
    )
]


def test_open(place: Place, case: Case) -> None:
    place.run(case)
