"""posix_fallocate(3) and fallocate(2). pyfuse3 hands no fallocate through: the system call is
refused on mounts, and glibc's posix_fallocate writes the zeros itself."""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
posix_fallocate makes a file longer, never shorter
    put x 1234567
    open x O_RDWR as f
    reserve @f 0 4
    stat x size = 7
    mark x
    reserve @f 20000 3456
    stat x size = 23456
    moved x = mc
    read @f 9 = 1234567..
    read @f 9 23450 = ......

posix_fallocate of nothing, or before the start, is EINVAL
    open x O_CREAT|O_RDWR 644 as f
    mark x
    reserve @f 0 0 = EINVAL
    reserve @f -1 10 = EINVAL
    moved x = -

posix_fallocate needs a descriptor that may write
    put x 1234567
    open x O_RDONLY as f
    reserve @f 0 100 = EBADF
    stat x size = 7

posix_fallocate of a file made without permissions
    alice: open x O_CREAT|O_RDWR 0 as f
    alice: reserve @f 0 10
    stat x size = 10

fallocate HOW
    put x 1234567
    open x O_RDWR as f
    fallocate @f HOW 0 4 = 0 mounts: EOPNOTSUPP
""",
    HOW="keep punch plain",
)


def test_allocate(place: Place, case: Case) -> None:
    place.run(case)
