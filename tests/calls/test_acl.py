"""POSIX ACLs: who is let in, what a new object inherits, and what chmod does to them."""

from tests.calls.conftest import Place
from tests.calls.script import Case, read_cases

DEFAULT = "u::rwx,u:bob:rwx,g::r-x,m::rwx,o::---"
CASES = read_cases(
    """
a default ACL takes the umask's place for a TYPE
    umask 77
    mkdir d
    setfacl d default DEFAULT
    make TYPE d/x 666
    lstat d/x mode = 0660
    getfacl d/x access = u::rw-,u:bob:rwx,g::r-x,m::rw-,o::---
    make TYPE d/y 640
    lstat d/y mode = 0640
    make TYPE d/z 0
    lstat d/z mode = 0000
    make TYPE plain 666
    lstat plain mode = 0600

a default ACL without names takes the umask's place and leaves no ACL on a TYPE
    umask 77
    mkdir d
    setfacl d default u::rwx,g::r-x,o::r--
    make TYPE d/x 666
    lstat d/x mode = 0644
    getfacl d/x access = ENODATA

an ACL lets a user into a PLAIN, and shuts one out
    make PLAIN x 600
    chown x alice staff
    chmod x 600
    bob: access x r = no
    setfacl x access u::rw-,u:bob:rw-,g::---,m::rw-,o::r--
    bob: access x rw = yes
    crew: access x r = yes
    crew: access x w = no
    crew+staff: access x r = no
    setfacl x access u::rw-,u:bob:---,g::---,m::rw-,o::rw-
    bob: access x r = no
    crew: access x rw = yes

the mode's group bits are the mask, on a PLAIN
    make PLAIN x 600
    chown x alice staff
    setfacl x access u::rw-,u:bob:rwx,g::r--,m::rwx,o::---
    stat x mode = 0670
    chmod x 640
    getfacl x access = u::rw-,u:bob:rwx,g::r--,m::r--,o::---
    bob: access x w = no
    bob: access x r = yes
    setfacl x access u::rwx,g::r-x,o::---
    stat x mode = 0750
    getfacl x access = ENODATA

only the owner sets an ACL on a PLAIN
    make PLAIN x
    chown x alice alice
    chmod x 666
    bob: setfacl x access u::rw-,g::rw-,o::rw- = EPERM
    alice: setfacl x access u::rw-,u:bob:r--,g::rw-,m::rw-,o::rw-
    bob: rmacl x access = EPERM
    alice: rmacl x access
    getfacl x access = ENODATA

an ACL moves ctime of a PLAIN
    make PLAIN x
    mark x
    setfacl x access u::rw-,u:bob:r--,g::rw-,m::rw-,o::rw-
    moved x = c

an ACL by somebody outside the group takes sgid from a PLAIN
    make PLAIN x
    chown x alice staff
    chmod x 2770
    alice+staff: setfacl x access u::rwx,u:bob:rwx,g::rwx,m::rwx,o::---
    stat x mode = 2770
    alice/staff: setfacl x access u::rwx,g::rwx,o::---
    stat x mode = 2770
    root: setfacl x access u::rwx,g::rwx,o::r--
    stat x mode = 2774
    alice: setfacl x access u::rwx,u:bob:rwx,g::rwx,m::rwx,o::---
    stat x mode = 0770
    root: chmod x 2770
    alice+crew: setfacl x access u::rwx,g::r-x,o::---
    stat x mode = 0750

EINVAL for a broken ACL on a PLAIN
    make PLAIN x
    chmod x 640
    setfacl x access u::rwx = EINVAL
    setfacl x access u::rwx,u:bob:rwx,g::rwx,o::--- = EINVAL
    setfacl x access u::rwx,o::---,g::rwx = EINVAL
    setxattr x system.posix_acl_access junk = EINVAL|EOPNOTSUPP
    stat x mode = 0640
""",
    TYPE="regular fifo socket",
    PLAIN="regular dir",
    DEFAULT=DEFAULT,
)
CASES += read_cases(
    """
a default ACL goes down from directory to directory
    umask 77
    mkdir d
    setfacl d default DEFAULT
    mkdir d/e 777
    stat d/e mode = 0770
    getfacl d/e default = DEFAULT
    getfacl d/e access = u::rwx,u:bob:rwx,g::r-x,m::rwx,o::---
    mkdir d/e/f 700
    stat d/e/f mode = 0700
    getfacl d/e/f default = DEFAULT
    create d/e/f/x 644
    stat d/e/f/x mode = 0640

a symlink inherits no ACL
    mkdir d
    setfacl d default DEFAULT
    symlink nowhere d/s
    lstat d/s mode = 0777

what open(2) and mknod(2) make inherits alike
    umask 27
    mkdir d
    setfacl d default u::rwx,u:bob:rwx,g::rwx,m::rwx,o::rwx
    open d/a O_CREAT|O_WRONLY 666
    create d/b 666
    mknod d/c regular 666
    stat d/a mode = 0666
    stat d/b mode = 0666
    stat d/c mode = 0666
    put d/e text
    stat d/e mode = 0666

a default ACL that is taken away
    umask 22
    mkdir d
    setfacl d default DEFAULT
    rmacl d default
    mkdir d/e 777
    stat d/e mode = 0755
    getfacl d/e default = ENODATA

a directory's access ACL is not inherited
    mkdir d
    setfacl d access u::rwx,u:bob:rwx,g::r-x,m::rwx,o::r-x
    create d/x 644
    getfacl d/x access = ENODATA
    bob: create d/y
    crew: create d/z = EACCES

a file has no default ACL
    create x
    setfacl x default DEFAULT = EACCES|EPERM
    getfacl x default = ENODATA

set-group-ID and a default ACL together
    mkdir d
    chown d root staff
    chmod d 2775
    setfacl d default u::rwx,g::rwx,g:crew:rwx,m::rwx,o::---
    bob+staff: mkdir d/e 777
    bob+staff: create d/e/x 666
    stat d/e mode,group = 2770,staff
    stat d/e/x mode,group = 0660,staff
    bob/crew: access d/e/x rw = yes
    alice: access d/e/x r = no

an ACL goes along with rename and belongs to all names
    create x 640
    setfacl x access u::rw-,u:bob:r--,g::---,m::r--,o::---
    rename x y
    link y z
    getfacl z access = u::rw-,u:bob:r--,g::---,m::r--,o::---
    chmod z 600
    getfacl y access = u::rw-,u:bob:r--,g::---,m::---,o::---
    bob: open y O_RDONLY = EACCES
    chmod y 640
    bob: open z O_RDONLY
    bob: open z O_WRONLY = EACCES
""",
    DEFAULT=DEFAULT,
)


def test_acl(place: Place, case: Case) -> None:
    place.run(case)
