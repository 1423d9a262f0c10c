"""rename(2) and renameat2(2): what may replace what, who may, what happens to times and links."""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

CASES = read_cases(
    """
a TYPE gets another name, and stays the inode it was
    make TYPE x
    mkdir d
    chmod x 640
    mark x . d
    rename x d/y
    lstat x type = ENOENT
    lstat d/y type,mode = TYPE,0640
    moved d/y x = c
    moved . = mc
    moved d = mc
    rename d/y d/z
    ls d = z

a TYPE replaces a KIND
    make TYPE x
    make KIND y
    link y kept
    mark kept .
    rename x y
    lstat y type,nlink = TYPE,1
    lstat x type = ENOENT
    lstat kept nlink = 1
    moved kept = c
    moved . = mc

a TYPE replaces itself under another name: nothing happens
    make TYPE x
    link x y
    mark x .
    rename x y
    lstat x nlink = 2
    lstat y nlink = 2
    moved x = -
    moved . = -

EISDIR for a TYPE over a directory
    make TYPE x
    mkdir d
    mark x d .
    rename x d = EISDIR
    moved x = -
    moved . = -
    lstat d nlink = 2

ENOTDIR for a directory over a TYPE
    mkdir d
    make TYPE x
    rename d x = ENOTDIR
    lstat x type = TYPE

renameat2 without replacing a TYPE
    make TYPE x
    make TYPE y
    renameat2 x y noreplace = EEXIST
    renameat2 x x noreplace = EEXIST
    renameat2 x z noreplace
    lstat z type = TYPE
    lstat x type = ENOENT

renameat2 exchanges a TYPE and a directory
    make TYPE x
    mkdir d
    create d/f
    mkdir p
    mkdir q
    rename x p/x
    rename d q/d
    mark p q
    renameat2 p/x q/d exchange
    lstat q/d type = TYPE
    ls p/x = f
    stat p nlink = 3
    stat q nlink = 2
    moved p = mc
    moved q = mc
""",
    TYPE="regular fifo socket char block",
    KIND="regular fifo",
)
CASES += read_cases(
    """
a symlink is renamed, not what it leads to
    put x text
    symlink x s
    rename s t
    readlink t = x
    put y other
    rename y t
    lstat t type = regular
    cat x = text

a directory with all that is in it
    mkdir d
    mkdir d/e
    put d/e/f text
    mkdir new
    mark d . new
    rename d new/d
    cat new/d/e/f = text
    stat new nlink = 3
    moved . = mc
    moved new = mc
    moved new/d d = c

a directory replaces an empty one
    mkdir a
    create a/f
    mkdir b
    rename a b
    ls b = f
    lstat a type = ENOENT
    rename b b
    ls b = f

ENOTEMPTY over a directory with a KEPT in it
    mkdir a
    mkdir b
    create b/KEPT
    mark . b
    rename a b = ENOTEMPTY|EEXIST
    moved . = -
    moved b = -
    ls b = KEPT
    unlink b/KEPT
    rename a b

a replaced directory that is open is empty and has no links
    mkdir a
    create a/f
    mkdir b
    open b O_RDONLY|O_DIRECTORY as f
    rename a b
    stat @f nlink = 0
    ls @f = -
    ls b = f

EINVAL for a directory into itself
    mkdir a
    mkdir a/b
    rename a a/c = EINVAL
    rename a a/b/c = EINVAL
    rename a a/b = EINVAL|ENOTEMPTY
    renameat2 a a/b exchange = EINVAL
    ls a = b

ENOTEMPTY for a directory over one above it
    mkdir a
    mkdir a/b
    rename a/b a = ENOTEMPTY|EEXIST
    renameat2 a/b a exchange = EINVAL

EBUSY or EINVAL for . and ..
    mkdir a
    mkdir a/b
    chdir a
    rename . ../c = EBUSY|EINVAL
    rename .. ../c = EBUSY|EINVAL
    rename b . = EBUSY|EINVAL
    rename b .. = EBUSY|EINVAL|ENOTEMPTY
    rename b/. c = EBUSY|EINVAL
    rename b/.. c = EBUSY|EINVAL
    ls . = b

a slash behind the name is for directories
    create f
    mkdir d
    rename d/ e/
    ls . = e,f
    rename f g/ = ENOTDIR
    rename f/ g = ENOTDIR
    ls . = e,f

EXDEV to another file system
    create x
    mkdir d
    rename x {other}/never = EXDEV
    rename d {other}/never = EXDEV
    ls . = d,x

ENOENT into a directory that is gone
    create x
    mkdir d
    open d O_RDONLY as f
    rmdir d
    rename x d/x = ENOENT

renameat2 refuses what makes no sense, and what is not there
    create x
    create y
    renameat2 x y both = EINVAL
    renameat2 x missing exchange = ENOENT
    renameat2 missing x exchange = ENOENT
    renameat2 x x exchange
    ls . = x,y

a directory moves only for who may write to it, as its .. changes
    mkdir a 777
    mkdir b 777
    chmod a 777
    chmod b 777
    mkdir a/d 755
    create a/f
    alice: rename a/f b/f
    alice: rename a/d a/e
    alice: rename a/e b/e = EACCES
    chmod a/e 777
    alice: rename a/e b/e
    ls b = e,f
    stat a nlink = 2
    stat b nlink = 3

EACCES without write permission in SIDE
    mkdir a 777
    mkdir b 777
    chmod a 777
    chmod b 777
    create a/f
    chmod SIDE 555
    alice: rename a/f b/f = EACCES
    alice: renameat2 a/f b/f noreplace = EACCES
    chmod SIDE 666
    alice: rename a/f b/f = EACCES
    chmod SIDE 333
    alice: rename a/f b/f

in a sticky directory a TYPE leaves only by its owner or the directory's
    mkdir d
    chown d bob bob
    chmod d 1777
    mkdir to 777
    chmod to 777
    make TYPE d/x
    lchown d/x alice alice
    bob+alice: lstat d/x type = TYPE
    ALIEN: rename d/x d/y = EPERM|EACCES
    ALIEN: rename d/x to/x = EPERM|EACCES
    alice: rename d/x d/y
    bob: rename d/y d/z
    lstat d/z type,user = TYPE,alice

in a sticky directory a MOVABLE is replaced only by its owner or the directory's
    mkdir d
    chown d bob bob
    chmod d 1777
    make MOVABLE d/x
    lchown d/x alice alice
    mkdir from 777
    chmod from 777
    ALIEN: make MOVABLE from/x
    ALIEN: make MOVABLE from/z
    ALIEN: rename from/x d/x = EPERM|EACCES
    ALIEN: renameat2 from/x d/x exchange = EPERM|EACCES
    chown from bob bob
    bob: rename from/x d/x
    alice: rename from/z d/x = EPERM|EACCES
    lstat d/x user = ALIEN
    ALIEN: rename from/z d/x

all links of a replaced file but one stay
    put x new
    put y old
    link y z
    rename x y
    cat y = new
    cat z = old
    stat z nlink = 1
    rename y z
    ls . = z
    stat z nlink = 1

mode, owner, times and attributes go along
    put x text
    setxattr x user.a b
    chmod x 4711
    utimens x 5.000000006 7.000000008
    mkdir d
    rename x d/y
    stat d/y mode,atime,mtime,nlink = 4711,5.000000006,7.000000008,1
    getxattr d/y user.a = b
    cat d/y = text
""",
    TYPE="regular dir fifo socket symlink",
    KEPT="name .hidden",
    SIDE="a b",
    MOVABLE="regular fifo socket symlink",  # a directory cannot be written by who moves it
    ALIEN="crew",
)


def test_rename(place: Place, case: Case) -> None:
    place.run(case)
