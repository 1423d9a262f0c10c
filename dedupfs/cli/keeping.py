"""Makes the snapshot of a run whose command has succeeded; says what is kept if that cannot be.

The daemon makes it of its view, or this process takes in what overlayfs has written. What signals
do meanwhile is ``cli/ending``'s; this knows no namespace and no process. Specified in docs/cli.md,
"run".
"""

import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

from dedupfs.cli import output, scratch
from dedupfs.cli.ending import Ending, UncommittedError, interrupt
from dedupfs.cli.failures import BUG_EXIT_CODE
from dedupfs.cli.scratch import Kept, Scratch
from dedupfs.errors import DedupfsError
from dedupfs.fuse import mountpoints
from dedupfs.namespace import live


class Written(ABC):
    """What a command has written."""

    stop: Callable[[], None]
    """Stops ``commit``, from a signal's handler."""

    @abstractmethod
    def commit(self, request: live.Commit) -> None:
        """Make a snapshot of it."""

    @abstractmethod
    def let_go(self) -> None:
        """Do with it what is to be done once it has become one."""

    @abstractmethod
    def leave(self, failure: BaseException) -> BaseException:
        """Say what is kept of it where there is none; return what to raise then."""


class InView(Written):
    """It is in the daemon's view, and goes with that."""

    def __init__(self, mountpoint: Path, socket_path: Path, stop: Callable[[], None]) -> None:
        self._mountpoint = mountpoint
        self._socket_path = socket_path
        self.stop = stop

    def commit(self, request: live.Commit) -> None:
        """Have the daemon do so."""
        mountpoints.write_back(self._mountpoint)
        live.ask(self._socket_path, request)

    def let_go(self) -> None:
        """Leave it to the daemon's end."""

    def leave(self, failure: BaseException) -> BaseException:
        """Return the failure: nothing is kept."""
        return failure


class InScratch(Written):
    """overlayfs has written it to a scratch directory, which nothing covers any more."""

    def __init__(self, store: Path, found: Scratch, kept: Kept) -> None:
        self._store = store
        self._scratch = found
        self._kept = kept
        self.stop = interrupt

    def commit(self, request: live.Commit) -> None:
        """Take it in; the daemon still holds what was below."""
        scratch.take_in(self._store, self._scratch.path, self._kept, request.name, request.tags)

    def let_go(self) -> None:
        """Keep it no longer."""
        self._scratch.let_go()

    def leave(self, failure: BaseException) -> BaseException:
        """Say what is kept, once it would survive a power cut; return what to raise then."""
        unsynced: Exception | None = None
        try:
            self._scratch.sync()
        except (DedupfsError, OSError) as exc:
            unsynced = exc
        where = self._scratch.path
        store, path = (shlex.quote(str(path)) for path in (self._store, where))
        again = f"dedupfs commit {store} NAME --upper {path}"
        output.note(f"what the command wrote is kept in {where}; to take it in: {again}")
        if unsynced is None:
            return failure
        code = failure.exit_code if isinstance(failure, DedupfsError) else BUG_EXIT_CODE
        return UncommittedError(
            f"{failure}; what is kept may not survive a power cut: {unsynced}", code
        )


def keep(written: Written, request: live.Commit, store_directory: int, mask: Iterable[int]) -> None:
    """Make the snapshot, with ``mask`` from here on; signals were held back until now.

    ``store_directory``: descriptor of it, for a view may be mounted over the way there.

    Raises:
        BaseException: there is no snapshot, and why; or that cannot be told.
    """
    began_ns = time.time_ns()
    ending = Ending(request.name, written.stop)
    try:
        ending.begin(mask)
        written.commit(request)
        ending.stop = None
    except BaseException as exc:  # noqa: BLE001  without a snapshot, it goes on
        ending.stop = None  # no call before this: a signal's handler would run in it
        failure = ending.failed(exc, lambda name: _is_made(store_directory, name, began_ns))
        if failure is not None:
            failure = written.leave(failure)
            ending.told()
            raise failure from (None if failure is exc else exc)
    written.let_go()
    ending.made()


def _is_made(store_directory: int, name: str, since_ns: int) -> bool:
    """Whether the snapshot was made although that was stopped."""
    from dedupfs.namespace.snapshots import SnapshotCatalog
    from dedupfs.store import Store

    with Store.open(Path(f"/proc/self/fd/{store_directory}")) as store:
        info = SnapshotCatalog(store).find(name)
    return info is not None and info.created_ns >= since_ns
