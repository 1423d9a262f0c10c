"""Every failure that dedupfs expects, each with an errno for FUSE and an exit code for the shell.

The bottom layer: imports nothing of dedupfs. Errors become errno in one decorator
(``fuse/operations.py``) and exit codes in one function (``cli/main``); docs/cli.md lists the codes.
"""

import errno


class DedupfsError(Exception):
    """Base of all expected failures; never raised itself."""

    errno: int = errno.EIO
    exit_code: int = 1


class UsageError(DedupfsError):
    """A bad argument or setting."""

    errno = errno.EINVAL
    exit_code = 2


class SourceError(DedupfsError):
    """Something outside the store could not be read or written; some files may be missing."""

    exit_code = 7


class MountError(DedupfsError):
    """The mount could not be made or ended: no /dev/fuse, no permission, a busy mount point."""

    exit_code = 8


class StoreError(DedupfsError):
    """The store or its disk failed."""

    errno = errno.EIO
    exit_code = 3


class CorruptError(StoreError):
    """Bytes contradict a checksum or the format; the message says where."""


class TornRecordError(StoreError):
    """A crash cut an append short; only recovery and scans may see it."""


class MissingRecordError(StoreError):
    """Something refers to a record that the index does not know."""


class FormatVersionError(StoreError):
    """A newer dedupfs wrote this, or a feature flag is unknown; nothing is opened."""

    exit_code = 4


class StoreFullError(StoreError):
    """The disk, the quota or the index map is full."""

    errno = errno.ENOSPC
    exit_code = 5


class QuotaError(StoreFullError):
    """A limit that somebody has set for the store or the view is reached."""

    errno = errno.EDQUOT


class FileLimitError(StoreError):
    """The store's file system has no files that long, or the process may not write them."""

    errno = errno.EFBIG


class StoreBusyError(StoreError):
    """Somebody else holds the store or the view; the message names who."""

    errno = errno.EBUSY
    exit_code = 6


class NamespaceError(DedupfsError):
    """An ordinary POSIX answer; not logged."""


class NotFoundError(NamespaceError):
    """No such name."""

    errno = errno.ENOENT


class ExistsError(NamespaceError):
    """The name is taken."""

    errno = errno.EEXIST
    exit_code = 2


class NotADirectoryNameError(NamespaceError):
    """A directory was needed."""

    errno = errno.ENOTDIR


class IsADirectoryNameError(NamespaceError):
    """A directory is not allowed here."""

    errno = errno.EISDIR


class NotEmptyError(NamespaceError):
    """The directory still has entries."""

    errno = errno.ENOTEMPTY


class ReadOnlyError(NamespaceError):
    """The view is read-only."""

    errno = errno.EROFS


class NameTooLongError(NamespaceError):
    """A name of more than 255 bytes."""

    errno = errno.ENAMETOOLONG


class CrossScopeError(NamespaceError):
    """A hard link or a linked file would leave its snapshot's directory."""

    errno = errno.EXDEV


class StaleError(NamespaceError):
    """The inode number names nothing any more."""

    errno = errno.ESTALE


class NoAttributeError(NamespaceError):
    """No such extended attribute."""

    errno = errno.ENODATA


class NoRoomError(NamespaceError):
    """An inode has as many extended attributes as it can have."""

    errno = errno.ENOSPC


class NotPermittedError(NamespaceError):
    """The operation is not allowed on this object."""

    errno = errno.EPERM


class InvalidError(NamespaceError):
    """An argument that the operation cannot take."""

    errno = errno.EINVAL


class TooLargeError(NamespaceError):
    """Beyond the largest file or the most entries."""

    errno = errno.EFBIG


class TooManyLinksError(NamespaceError):
    """The inode has as many names as it can have."""

    errno = errno.EMLINK


class TooManyOpenError(NamespaceError):
    """More files are open in one mount than it can tell apart."""

    errno = errno.ENFILE


class LoopError(NamespaceError):
    """More symbolic links on the way than anybody would follow."""

    errno = errno.ELOOP


class NotSupportedError(NamespaceError):
    """The operation does not exist here."""

    errno = errno.EOPNOTSUPP
