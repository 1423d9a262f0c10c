"""mkdir(2), mkfifo(3), mknod(2), symlink(2) and open(2) with O_CREAT: what a new object is like.

Type, mode under the umask, owner, group (also below a set-group-ID directory), and times of the
object and of its directory.
"""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
a new TYPE has the mode that the umask leaves
    umask 22
    make TYPE a 777
    lstat a type,mode = TYPE,0755
    umask 27
    make TYPE b 666
    lstat b mode = 0640
    umask 777
    make TYPE c 777
    lstat c mode = 0000
    umask 0
    make TYPE d 1777
    lstat d mode = 1777
    make TYPE e 0
    lstat e mode = 0000

a new MADE is its maker's
    alice/crew+staff: make MADE a
    lstat a user,group = alice,crew
    bob: make MADE b
    lstat b user,group = bob,bob

a new MADE below a set-group-ID directory has the directory's group
    mkdir d
    chown d root staff
    chmod d 2777
    alice: make MADE d/a 755
    lstat d/a user,group = alice,staff
    root: make MADE d/b 755
    lstat d/b user,group = root,staff

a new TYPE changes the times of its directory, and its own are now
    mark .
    make TYPE a
    moved . = mc
    moved a . = amc
    mark .
    make TYPE a = EEXIST
    moved . = -
""",
    TYPE="regular dir fifo socket char block",
    MADE="regular dir fifo socket",
)
CASES += read_cases(
    """
set-group-ID goes down from directory to directory, not to files
    mkdir d
    chown d root staff
    chmod d 2777
    alice: mkdir d/e 700
    alice: mkdir d/e/f 750
    alice: create d/e/f/g 777
    stat d/e mode,group = 2700,staff
    stat d/e/f mode,group = 2750,staff
    stat d/e/f/g mode,group = 0755,staff

suid and sgid that the maker asks for
    umask 0
    create a 6777
    stat a mode = 6777
    mkdir d
    chown d root staff
    chmod d 2777
    alice: create d/a 2755         # not of the group, so no sgid with execution
    stat d/a mode = 0755
    alice+staff: create d/b 2755
    stat d/b mode = 2755
    root: create d/c 2755
    stat d/c mode = 2755
    alice: create d/d 2745
    stat d/d mode = 2745
    alice: create d/e 4755
    stat d/e mode = 4755

directories count their subdirectories
    mkdir d
    stat d nlink = 2
    mkdir d/a
    mkdir d/b
    create d/c
    stat d nlink = 4
    rename d/a e
    stat d nlink = 3
    rename e d/b
    stat d nlink = 3
    rmdir d/b
    stat d nlink = 2
    symlink . d/s
    stat d nlink = 2

mkdir makes sticky directories, and Linux no set-ID ones
    umask 0
    mkdir a 1777
    stat a mode = 1777
    mkdir b 6755
    stat b mode = 0755

a device has its number
    mknod c char
    mknod b block
    mknod p fifo
    mknod f regular
    lstat c type,rdev = char,1:3
    lstat b type,rdev = block,1:3
    lstat p type,rdev = fifo,0:0
    lstat f type,rdev,size = regular,0:0,0

EPERM for a user's KIND device
    alice: mknod x KIND = EPERM
    lstat x type = ENOENT
    alice: mknod p fifo

a socket that is bound
    bind x
    lstat x type,size,nlink = socket,0,1
    bind x = EADDRINUSE

a symlink has all permissions and the length of its target
    umask 77
    symlink some/where s
    lstat s type,mode,size,nlink = symlink,0777,10,1
    readlink s = some/where
    alice: symlink {target4095} t
    readlink t = {target4095}
    lstat t user,group,size = alice,alice,4095
    symlink {target4096} u = ENAMETOOLONG
    symlink '' u = ENOENT
    lstat u type = ENOENT

a symlink below a set-group-ID directory has the directory's group
    mkdir d
    chown d root staff
    chmod d 2777
    alice: symlink x d/s
    lstat d/s user,group,mode = alice,staff,0777

EINVAL for reading what is no symlink
    create f
    mkdir d
    readlink f = EINVAL
    readlink d = EINVAL

mkdir with a slash behind the name, and a file with one
    mkdir d/
    stat d type = dir
    mkdir d/ = EEXIST
    open f/ O_CREAT|O_WRONLY 644 = EISDIR
    mkfifo p/ = ENOENT
    symlink x s/ = ENOENT
    symlink missing dangling
    mkdir dangling = EEXIST
    mkdir dangling/ = EEXIST

a directory cannot be made, or anything in it, once it is gone
    mkdir d
    open d O_RDONLY|O_DIRECTORY as f
    chdir d
    mark .
    rmdir ../d
    create x = ENOENT
    mkdir x = ENOENT
    symlink x y = ENOENT
    mkfifo x = ENOENT
    stat . nlink = 0
    ls @f = -

a name of any bytes but two
    create \\x01\\x7f\\n"
    create ...
    create -rf
    create *
    ls . = *,-rf,...,\\x01\\x7f\\n"

deep directories, past what one path can hold
    DEEPER
    mkdir end
    ls . = end
    stat end nlink = 2
""",
    KIND="char block",
    DEEPER=["\n    ".join(["mkdir {name255}", "chdir {name255}"] * 20)],
)


def test_make(place: Place, case: Case) -> None:
    place.run(case)
