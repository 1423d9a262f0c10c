"""``mount.dedupfs`` and ``umount.fuse.dedupfs``: what mount(8), umount(8) and systemd start.

As ``mount.fuse.dedupfs`` the first one is what mount(8) starts for a mount that is there already.

So a mount stands in /etc/fstab as any other. Knows what mount(8) hands to its helpers and which
options have a meaning here; how a mount is made is in ``mounts``. Specified in docs/cli.md; source:
mount(8), "EXTERNAL HELPERS"; umount(8); libmount's context_mount.c.
"""

import functools
import getopt
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dedupfs.errors import DedupfsError, UsageError

WRONG_USE = 1
INTERRUPTED = 8
FAILED = 32
"""Exit codes: mount(8), "EXIT STATUS"."""

IGNORED = frozenset(
    (
        *("defaults", "auto", "noauto", "user", "nouser", "users", "owner", "noowner", "group"),
        *("nogroup", "nofail", "_netdev", "async", "silent", "loud", "quiet", "nosuid", "nodev"),
        *("noatime", "nodiratime", "relatime", "exec", "rw"),
    )
)
"""About when to mount and who may, or what a mount of dedupfs is in any case."""
IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "helper=", "uhelper=")
IMPOSSIBLE = {
    "suid": "set-id bits never count in a mount of dedupfs",
    "dev": "device nodes cannot be opened in a mount of dedupfs",
    "remount": "'remount,bind' changes ro and noexec; for all else unmount it and mount it again",
    "sync": "'no_writeback' hands each write over, fsync makes it durable",
}
MEANINGS: dict[str, tuple[str, object]] = {
    "ephemeral": ("ephemeral", True),
    "allow_other": ("allow_other", True),
    "ro": ("read_only", True),
    "noexec": ("no_exec", True),
    "user": ("no_exec", True),
    "users": ("no_exec", True),
    "no_writeback": ("cached_writes", False),
    "no_auto_gc": ("auto_gc", False),
}
"""The settings of ``mounts.serve`` that an option makes. Of users' mounts: mount(8), ``user``."""
VALUED = ("snapshot", "view", "limit", "metrics", "log_format")
LABELS = ("context", "fscontext", "defcontext", "rootcontext")
"""SELinux's, handed to the kernel as they are: mount(8); Linux, security/selinux/hooks.c."""
OPPOSITES = {"rw": ("read_only",), "exec": ("no_exec",), "defaults": ("read_only", "no_exec")}
_OPTION = re.compile(r'(?:[^,"]|"[^"]*"?)+')
"""A comma in double quotes belongs to the value."""


@dataclass(frozen=True, slots=True)
class Request:
    """What mount(8) wants. ``settings`` are those of ``mounts.serve``."""

    store: Path
    mountpoint: Path
    settings: dict[str, object]
    fake: bool


def parse(arguments: Sequence[str]) -> Request:
    """Understand ``SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]``.

    Raises:
        UsageError: it is something else, or an option that means nothing here (without ``-s``).
    """
    try:
        switches, places = getopt.gnu_getopt(list(arguments), "sfnvN:o:t:")
    except getopt.GetoptError as exc:
        raise UsageError(f"{exc}; {USAGE}") from exc
    given = {switch for switch, _value in switches}
    if "-N" in given:
        raise UsageError("-N: enter the namespace first (nsenter --mount=...), then mount")
    if len(places) != 2:
        raise UsageError(USAGE)
    words = [value for switch, value in switches if switch == "-o"]
    settings = parse_options(",".join(words), sloppy="-s" in given)
    store, mountpoint = (Path(os.path.abspath(place)) for place in places)
    return Request(store, mountpoint, settings, "-f" in given)


USAGE = "usage: mount.dedupfs STORE MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]"


def parse_options(text: str, *, sloppy: bool) -> dict[str, object]:
    """Return what the options of ``-o`` say; the last of two that contradict each other counts.

    Raises:
        UsageError: one is unknown (not when ``sloppy``), lacks its value, or cannot be had.
    """
    settings: dict[str, object] = {}
    for option in _OPTION.findall(text):
        key, equals, quoted = option.partition("=")
        value = quoted.replace('"', "")
        for setting in OPPOSITES.get(option, ()):
            settings.pop(setting, None)
        word = "user" if key == "user" else option
        if word in MEANINGS:
            setting, meant = MEANINGS[word]
            settings[setting] = meant
        elif key in (*VALUED, *LABELS) and equals:
            if not value:
                raise UsageError(f"option '{key}' needs a value: {key}=...")
            settings[key] = value
        elif option in IMPOSSIBLE and not sloppy:
            raise UsageError(f"option '{option}': {IMPOSSIBLE[option]}")
        elif not (option in IGNORED or option.startswith(IGNORED_PREFIXES) or sloppy):
            raise UsageError(f"unknown option '{option}'")
    return _completed(settings)


def _completed(settings: dict[str, object]) -> dict[str, object]:
    from dedupfs.cli.logs import FORMATS
    from dedupfs.cli.output import parse_size

    labels = [f'{key}="{settings.pop(key)}"' for key in LABELS if key in settings]
    if labels:
        settings["labels"] = ",".join(labels)
    if settings.get("log_format", FORMATS[0]) not in FORMATS:
        raise UsageError(f"log_format={settings['log_format']}: it is one of {', '.join(FORMATS)}")
    limit = settings.pop("limit", None)
    if limit is not None:
        settings["limit_bytes"] = parse_size(str(limit))
    if sum(key in settings for key in ("view", "ephemeral", "read_only")) > 1:
        raise UsageError("view=, ephemeral and ro exclude each other")
    if limit is not None and "read_only" in settings:
        raise UsageError("limit= is for what is written: not with ro")
    return settings


def _mount(arguments: Sequence[str]) -> None:
    from dedupfs.cli import background, mounts

    request = parse(arguments)
    if request.fake:
        return
    body = functools.partial(
        mounts.serve,
        request.store,
        request.mountpoint,
        create=False,
        leave_group=True,
        **request.settings,  # type: ignore[arg-type]
    )
    background.run_in_background(body, leave_group_late=True)


def _umount(arguments: Sequence[str]) -> None:
    """Do what ``DIR [-flnrv] [-N NAMESPACE] [-t TYPE]`` says."""
    from dedupfs.cli import mounts

    usage = "usage: umount.fuse.dedupfs MOUNTPOINT [-flnrv] [-t TYPE]"
    try:
        switches, places = getopt.gnu_getopt(list(arguments), "flnrvN:t:")
    except getopt.GetoptError as exc:
        raise UsageError(f"{exc}; {usage}") from exc
    given = {switch for switch, _value in switches}
    if len(places) != 1 or "-N" in given:
        raise UsageError(usage)
    if given & {"-f", "-l"}:  # who forces or detaches does not want to wait
        plain = [switch for switch in ("-f", "-l") if switch in given]
        os.execvp("umount", ["umount", "--internal-only", *plain, "--", places[0]])
    mounts.end(Path(places[0]))


def _run(name: str, body: Callable[[Sequence[str]], None]) -> int:
    from dedupfs.cli.output import printable

    os.umask(os.umask(0o077) & 0o077)  # as the command line does: or we could not open our own
    try:
        body(sys.argv[1:])
    except UsageError as exc:
        code, said = WRONG_USE, str(exc)
    except DedupfsError as exc:
        code, said = FAILED, str(exc)
    except OSError as exc:
        code, said = FAILED, str(exc)
    except KeyboardInterrupt:
        code, said = INTERRUPTED, "interrupted"
    else:
        return 0
    sys.stderr.write(f"{name}: {printable(said)}\n")
    return code


def mount_main() -> int:
    """Be ``mount.dedupfs``."""
    return _run("mount.dedupfs", _mount)


def umount_main() -> int:
    """Be ``umount.fuse.dedupfs``."""
    return _run("umount.fuse.dedupfs", _umount)
