"""What is mounted: the mount table and the daemons that answer, put together.

Asks over the control sockets and never hangs: who does not answer in time is called silent. Knows
no store and no command.
"""

import enum
import os
import pwd
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import DedupfsError, StoreBusyError, StoreError, UsageError
from dedupfs.fuse import mountpoints
from dedupfs.namespace import live

ANSWER_S = 5.0


class State(enum.Enum):
    """What became of a mount. COPY: a bind mount of one that is live. HIDDEN: it answers, but its
    daemon may not be asked by this user. ELSEWHERE: a daemon answers for a mount that is not in
    this process's table."""

    LIVE = "live"
    COPY = "copy"
    DEAD = "dead"
    SILENT = "silent"
    HIDDEN = "hidden"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One mount, or a daemon whose mount is in another namespace.

    ``running`` None: no daemon answered. ``socket_path``: where it did. ``user`` and
    ``allow_other`` are None where the mount is not in sight.
    """

    store: Path
    mountpoint: Path
    user: int | None
    state: State
    running: live.Running | None = None
    socket_path: Path | None = None
    allow_other: bool | None = None

    @property
    def advice(self) -> str:
        """What to do about it; empty when all is well."""
        match self.state:
            case State.DEAD:
                return (
                    "its daemon and supervisor are gone: mounting there again takes the mount "
                    f"away, and so does: dedupfs umount {shlex.quote(os.fspath(self.mountpoint))}"
                )
            case State.SILENT:
                return (
                    f"no answer within {ANSWER_S:.0f} seconds: a daemon takes over, or its disk "
                    f"hangs; the log in {self.store / live.RUN_DIRECTORY} may say more"
                )
            case _:
                return ""


def user_name(uid: int | None) -> str:
    """Return a user's name, or the number of one that has none."""
    if uid is None:
        return ""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def mounted_stores() -> list[Path]:
    """Return the stores behind this machine's mounts that this user may ask."""
    sources = {real_path(mount.source) for mount in mountpoints.read_mounts() if mount.is_ours}
    return sorted(source for source in sources if _may_ask(source))


def _may_ask(store: Path) -> bool:
    return os.access(store / live.RUN_DIRECTORY, os.R_OK | os.X_OK)


def require_directories(stores: Iterable[Path]) -> None:
    """Refuse what no store can be.

    Raises:
        UsageError: it is no directory. StoreError: it cannot be looked at.
    """
    for store in stores:
        try:
            found = store.is_dir()
        except OSError as exc:
            raise StoreError(f"cannot look at {store}: {exc.strerror}") from exc
        if not found:
            raise UsageError(f"{store} is not a store")


def find_mounted(stores: Iterable[Path]) -> list[Mounted]:
    """Return the mounts of these stores, or of all that are mounted here, with who serves them.

    One store has one path here, however it was spelled when it was mounted.
    """
    wanted = {real_path(store) for store in stores}
    by_store: dict[Path, list[mountpoints.Mount]] = {store: [] for store in wanted}
    for mount in mountpoints.read_mounts():
        store = real_path(mount.source) if mount.is_ours else None
        if store is not None and (not wanted or store in wanted):
            by_store.setdefault(store, []).append(mount)
    return [mounted for store in sorted(by_store) for mounted in _of_store(store, by_store[store])]


def real_path(store: str | os.PathLike[str]) -> Path:
    """Return the path of a store without symbolic links."""
    return Path(os.path.realpath(store))


def _of_store(store: Path, mounts: list[mountpoints.Mount]) -> Iterator[Mounted]:
    answered, silent = _ask_all(store)
    seen = {mount.mountpoint: mount for mount in mounts}  # not what lies below one of them
    served = _by_device(seen.values(), answered)
    states = {
        mount.device: _state_of(mount) for mount in seen.values() if mount.device not in served
    }
    if State.LIVE in states.values():  # after a moment in which another daemon took over, perhaps
        answered |= _ask_all(store)[0]
        served = _by_device(seen.values(), answered)
    for mount in sorted(seen.values(), key=lambda mount: mount.mountpoint):
        daemon = served.get(mount.device)
        if daemon is not None:
            is_copy = daemon.running.mountpoint != os.fspath(mount.mountpoint)
            state = State.COPY if is_copy else State.LIVE
            answered.pop(daemon.running.mountpoint, None)
        else:
            state = states[mount.device]
            if state is State.LIVE:
                state = State.SILENT if silent or _may_ask(store) else State.HIDDEN
        yield _mounted(store, mount.mountpoint, state, daemon, mount)
    for daemon in answered.values():
        yield _mounted(store, Path(daemon.running.mountpoint), State.ELSEWHERE, daemon, None)


def _by_device(
    mounts: Iterable[mountpoints.Mount], answered: Mapping[str, live.Daemon]
) -> dict[str, live.Daemon]:
    """Return who serves each file system: all of its mounts have one device."""
    return {
        mount.device: answered[os.fspath(mount.mountpoint)]
        for mount in mounts
        if os.fspath(mount.mountpoint) in answered
    }


def _mounted(
    store: Path,
    mountpoint: Path,
    state: State,
    daemon: live.Daemon | None,
    mount: mountpoints.Mount | None,
) -> Mounted:
    return Mounted(
        store,
        mountpoint,
        mount.user if mount else None,
        state,
        daemon.running if daemon else None,
        daemon.socket_path if daemon else None,
        mount.allow_other if mount else None,
    )


def _ask_all(store: Path) -> tuple[dict[str, live.Daemon], bool]:
    """Return the daemons by mount point, and whether one did not answer in time."""
    answered: dict[str, live.Daemon] = {}
    silent = False
    try:
        paths = sorted((store / live.RUN_DIRECTORY).glob(f"*{live.SOCKET_SUFFIX}"))
    except OSError:  # another user's
        return answered, silent
    for path in paths:
        try:
            reply = live.ask(path, live.Status(), timeout_s=ANSWER_S)
        except StoreBusyError:
            silent = True
        except (DedupfsError, OSError):  # a dead one's
            continue
        else:
            if isinstance(reply, live.Running):
                answered[reply.mountpoint] = live.Daemon(path, reply)
    return answered, silent


def _state_of(mount: mountpoints.Mount) -> State:
    """Find out about a mount whose daemon did not answer, or could not be asked."""
    answers = mountpoints.answers_within(mount, ANSWER_S)
    if answers is None:
        return State.SILENT
    return State.LIVE if answers else State.DEAD
