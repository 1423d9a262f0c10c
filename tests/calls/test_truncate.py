"""truncate(2) and ftruncate(2): sizes, zeros, times, who may, and what cannot be cut."""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
truncate PATH to SIZE
    put x 1234567
    open x O_RDWR as f
    mark x .
    truncate PATH SIZE
    stat x size = SIZE
    moved x = mc
    moved . = -

truncate PATH and what is read then
    put x 1234567
    open x O_RDWR as f
    truncate PATH 3
    truncate PATH 6
    read @f 10 = 123...
    truncate PATH 0
    read @f 10 = -
    truncate PATH 4
    read @f 10 = ....

EINVAL for a negative size of PATH
    put x 1234567
    open x O_RDWR as f
    mark x
    truncate PATH -1 = EINVAL
    moved x = -
    stat x size = 7

EFBIG for more than any file can be, and the file stays, PATH
    put x 1234567
    open x O_RDWR as f
    truncate PATH 9223372036854775807 = EFBIG|EINVAL
    truncate PATH 999999999999999 = EFBIG|EINVAL
    stat x size = 7
    cat x = 1234567
    truncate PATH 3
    cat x = 123

more than 4 GiB of zeros, PATH
    put x 1234567
    open x O_RDWR as f
    truncate PATH 5000000000
    stat x size = 5000000000
    read @f 4 4999999998 = ..
    truncate PATH 2
    cat x = 12
""",
    PATH="x @f",
    SIZE="0 3 8 70000 3000000",
)
# A kernel that keeps times does not take ours, and truncate(2) does not tell it to move its own.
CASES += read_cases(
    """
truncate x to the size that it has
    put x 1234567
    mark x .
    truncate x 7
    stat x size = 7
    moved x = mc mounts: mc|-
    moved . = -

truncate @f to the size that it has
    put x 1234567
    open x O_RDWR as f
    mark x .
    truncate @f 7
    stat x size = 7
    moved x = mc
    moved . = -
"""
)
CASES += read_cases(
    """
EISDIR for a directory
    mkdir d
    truncate d 0 = EISDIR

EINVAL for a TYPE
    make TYPE x
    truncate x 0 = EINVAL

EINVAL by a descriptor that may not write
    put x 1234567
    open x O_RDONLY as f
    truncate @f 0 = EINVAL
    stat x size = 7

alice: EACCES without write permission, unless it was opened before
    put x 1234567
    open x O_RDWR as f
    chmod x 444
    truncate x 3 = EACCES
    truncate @f 3
    stat x size = 3
    open x O_WRONLY = EACCES

EACCES for a stranger
    put x 1234567
    alice: truncate x 3 = EACCES
    chmod x 646
    alice: truncate x 3
    stat x size = 3

a file made without permissions is writable by the descriptor that made it
    alice: open x O_CREAT|O_RDWR 0 as f
    alice: truncate @f 10
    alice: stat x size,mode = 10,0000
    alice: open x O_RDONLY = EACCES

a file without a name
    put x 1234567
    open x O_RDWR as f
    unlink x
    mark @f
    truncate @f 9
    moved @f = mc
    stat @f size,nlink = 9,0
    read @f 20 = 1234567..

ETXTBSY for a program that runs
    install x
    execute x
    truncate x 0 = ETXTBSY
    open x O_WRONLY = ETXTBSY
    open x O_RDWR|O_TRUNC = ETXTBSY
    open x O_RDONLY
    chmod x 700
    rename x y
    unlink y
    finish

a program that ended may be written, one that is written may not run
    install x
    execute x
    finish
    open x O_WRONLY as f
    execute x = ETXTBSY
    close @f
    execute x
    finish

all names of a file have its new size
    put x 1234567
    link x y
    truncate y 2
    stat x size,nlink = 2,2

truncate through a symlink
    put x 1234567
    symlink x s
    truncate s 2
    stat x size = 2
    lstat s size = 1
""",
    TYPE="fifo socket",
)
CASES += read_cases(
    """
a hole that truncate made has no data
    open x O_CREAT|O_RDWR 644 as f
    write @f abc
    truncate @f 1000000
    stat x size = 1000000
    read @f 3 999997 = ...
    write @f z 999999
    read @f 2 999998 = .z
"""
)


def test_truncate(place: Place, case: Case) -> None:
    place.run(case)
