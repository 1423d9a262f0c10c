"""Times: utimensat(2), and which call moves which time of what (POSIX, "File Times Update").

Reading moves atime as mounted: with relatime at home, mostly; never on a mount of ours.
"""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
times of a TYPE to the nanosecond
    make TYPE x
    mark x .
    lutimens x 1.000000001 4102444800.999999999
    lstat x atime,mtime = 1.000000001,4102444800.999999999
    moved . = -

times of a TYPE before 1970, after 2038 and after 2106
    make TYPE x
    lutimens x -1.5 0
    lstat x atime,mtime = -1.500000000,0.000000000
    lutimens x 2147483648.25 4294967296.75
    lstat x atime,mtime = 2147483648.250000000,4294967296.750000000
    lutimens x 0 0.000000001
    lstat x atime,mtime = 0.000000000,0.000000001
    lutimens x omit 5
    lstat x atime,mtime = 0.000000000,5.000000000
    lutimens x 0 0
    lutimens x omit 6
    lstat x atime,mtime = 0.000000000,6.000000000

mtime before atime and the other way round, of a TYPE
    make TYPE x
    lutimens x 1000 2000
    lstat x atime,mtime = 1000.000000000,2000.000000000
    lutimens x 2000 1000
    lstat x atime,mtime = 2000.000000000,1000.000000000

UTIME_OMIT leaves a time of a TYPE alone
    make TYPE x
    lutimens x 1000 2000
    lutimens x omit 3000
    lstat x atime,mtime = 1000.000000000,3000.000000000
    lutimens x 4000 omit
    lstat x atime,mtime = 4000.000000000,3000.000000000
    mark x
    lutimens x omit omit
    moved x = -

UTIME_NOW of a TYPE
    make TYPE x
    mark x
    lutimens x now now
    moved x = amc
    mark x
    lutimens x now omit
    moved x = ac
    mark x
    lutimens x omit now
    moved x = mc

setting the times of a TYPE that it has moves ctime
    make TYPE x
    lutimens x 1000 2000
    mark x
    lutimens x 1000 2000
    moved x = c

times further away than a file system can keep, of a TYPE
    make TYPE x
    lutimens x 100000000000 200000000000
    lutimens x -100000000000 -200000000000
    lutimens x 9223372036854775807 -9223372036854775808
    lstat x type = TYPE

extended attributes of a FILE move its ctime
    make FILE x
    mark x .
    setxattr x user.a 1
    moved x = c
    mark x
    getxattr x user.a = 1
    moved x = -
    moved . = -
""",
    TYPE="regular dir fifo socket symlink",
    FILE="regular dir",
)
CASES += read_cases(
    """
utimensat follows a symlink, and with AT_SYMLINK_NOFOLLOW does not
    create x
    symlink x s
    utimens s 1000 2000
    stat x atime,mtime = 1000.000000000,2000.000000000
    lutimens s 3000 4000
    lstat s mtime = 4000.000000000
    stat x atime,mtime = 1000.000000000,2000.000000000

EINVAL for nanoseconds that are none
    create x
    mark x
    utimens x 0.1000000000 0 = EINVAL
    utimens x 0 0.1000000000 = EINVAL
    moved x = -

who may write may set the times to now, and only the owner to anything else
    create x
    chown x alice alice
    chmod x 646
    bob: utimens x now now
    bob: utimens x 1000 2000 = EPERM
    bob: utimens x now omit = EPERM
    bob: utimens x omit now = EPERM
    bob: utimens x omit omit
    alice: utimens x 1000 2000
    alice: utimens x now omit
    chmod x 444
    alice: utimens x now now
    alice: utimens x 1000 2000
    bob: utimens x now now = EACCES
    root: utimens x 3000 4000
    stat x atime,mtime = 3000.000000000,4000.000000000

writing moves mtime and ctime, not atime
    create x
    open x O_RDWR as f
    mark x .
    write @f abc
    moved x = mc
    mark x
    write @f abc 100000
    moved x = mc
    mark x
    write @f b 1
    moved x = mc
    mark x
    close @f
    moved x = -
    moved . = -

writing through a mapping moves mtime and ctime
    put x text
    open x O_RDWR as f
    cat x = text                   # or the fault of the page would move atime under relatime
    mark x
    scribble @f new
    moved x = mc
    cat x = newt

times that were set before the last write are over, those set after it stay
    create x
    open x O_RDWR as f
    write @f abc
    utimens @f 1000 2000
    fsync @f
    close @f
    stat x atime,mtime = 1000.000000000,2000.000000000
    open x O_RDWR as f
    utimens @f 3000 4000
    mark x
    write @f abc
    moved x = mc
    stat x atime = 3000.000000000

reading bytes, entries and links moves atime as mounted
    put x text
    mkdir d
    create d/y
    symlink x s
    mark x d s
    cat x = text
    moved x = {read}
    ls d = y
    moved d = {read}
    readlink s = x
    moved s = {read}

reading with O_NOATIME moves nothing
    put x text
    open x O_RDONLY|O_NOATIME as f
    mark x
    read @f 4 = text
    moved x = -

O_NOATIME is the owner's
    put x text
    chmod x 666
    alice: open x O_RDONLY|O_NOATIME = EPERM

looking at a thing moves nothing
    create x
    mkdir d
    mark x d .
    stat x type = regular
    access x rw = yes
    open x O_RDWR
    open d O_RDONLY
    stat d/missing type = ENOENT
    moved x = -
    moved d = -
    moved . = -

what fails moves nothing
    put x text
    mkdir d
    create d/y
    mark x d d/y .
    mkdir x = EEXIST
    rmdir d = ENOTEMPTY
    rename x d = EISDIR
    link x d/y = EEXIST
    open x O_CREAT|O_EXCL|O_WRONLY 644 = EEXIST
    symlink a d/y = EEXIST
    unlink d = EISDIR
    moved x = -
    moved d = -
    moved d/y = -
    moved . = -

a change deep down moves only its own directory
    mkdir a
    mkdir a/b
    mkdir a/b/c
    mark . a a/b a/b/c
    create a/b/c/x
    moved a/b/c = mc
    moved a/b = -
    moved a = -
    moved . = -
    unlink a/b/c/x
    rename a/b/c a/c
    moved a/b = mc
    moved a = mc
    moved . = -

atime of a directory stays when names come and go
    mkdir d
    mark d
    create d/x
    moved d = mc
    mark d
    unlink d/x
    moved d = mc

copy_file_range moves the target's mtime and ctime
    put x 12345678
    create y
    open x O_RDONLY as f
    open y O_WRONLY as g
    mark y
    copyrange @f @g 5 = 5
    moved y = mc
    cat y = 12345
"""
)


def test_times(place: Place, case: Case) -> None:
    place.run(case)
