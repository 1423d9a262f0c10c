"""The command metrics: stores and their mounts in the text format of Prometheus.

Asks daemons and reads the index; what the text looks like: ``dedupfs.metrics``.
"""

import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import click

from dedupfs.cli import output
from dedupfs.cli.arguments import STORES, open_store
from dedupfs.cli.watching import (
    ANSWER_S,
    Mounted,
    State,
    find_mounted,
    mounted_stores,
    real_path,
)
from dedupfs.errors import DedupfsError, SourceError, UsageError
from dedupfs.namespace import live


@click.command()
@STORES
@click.option(
    "--textfile",
    metavar="PATH",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to PATH, whole or not at all, as node_exporter's textfile collector reads it.",
)
def metrics(stores: tuple[Path, ...], textfile: Path | None) -> None:
    """Print the numbers of each STORE and its mounts for Prometheus; of all stores mounted here.

    \b
    Examples:
      dedupfs metrics store/
      dedupfs metrics store/ --textfile /var/lib/prometheus/node-exporter/dedupfs.prom
    """
    try:
        from dedupfs.metrics import MountCounters, render
    except ImportError as exc:
        raise UsageError(
            f"this needs prometheus-client: pip install 'dedupfs[metrics]' ({exc})"
        ) from exc
    paths = [real_path(store) for store in stores] or mounted_stores()
    mounts = [
        MountCounters(
            str(mounted.store),
            mounted.running.view if mounted.running else "",
            str(mounted.mountpoint),
            _counted(mounted),
        )
        for mounted in (find_mounted(paths) if paths else [])
        if mounted.state not in (State.HIDDEN, State.COPY)
    ]
    sums, failures = _sums_of(paths)
    if failures and not (mounts or sums):
        raise failures[0]
    page = render(mounts, sums)
    if textfile is None:
        click.echo(page, nl=False)
    else:
        _write_whole(textfile, page)
    if failures:
        raise failures[0]


def _counted(mounted: Mounted) -> live.Counted | None:
    if mounted.socket_path is None:
        return None
    try:
        reply = live.ask(mounted.socket_path, live.Counters(), timeout_s=ANSWER_S)
    except DedupfsError as exc:
        output.note(f"{mounted.mountpoint}: {exc}")
        return None
    return reply if isinstance(reply, live.Counted) else None


def _sums_of(paths: Iterable[Path]) -> tuple[dict[str, dict[str, int]], list[DedupfsError]]:
    """Return the numbers of the stores that can be read, and why others cannot.

    One that is damaged, or that somebody put behind a mount of his, hides no other.
    """
    found: dict[str, dict[str, int]] = {}
    failures: list[DedupfsError] = []
    for path in paths:
        try:
            found[str(path)] = _sums(path)
        except DedupfsError as exc:
            if failures:  # the first one is said at the end, with its exit code
                output.note(str(exc))
            failures.append(exc)
    return found, failures


def _sums(path: Path) -> dict[str, int]:
    from dedupfs.maintenance.sums import store_sums
    from dedupfs.metrics import file_system_sums

    with open_store(path) as store:
        return {**file_system_sums(path), **store_sums(store)}


def _write_whole(path: Path, page: bytes) -> None:
    """Put a file in its place by rename: a reader sees the old one or the new one.

    Readable by everybody, since the collector runs as another user. Not synced: after a power cut
    the next run writes it anew.

    Raises:
        SourceError: it cannot be written. UsageError: what has the name is no file, and a rename
            would replace it: /dev/null, or a link that somebody else has put there.
    """
    with suppress(OSError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise UsageError(f"{path} is not a regular file: --textfile would replace it")
    # The collector reads *.prom alone, and what a killed run left must not be taken for more.
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(page)
                os.fchmod(descriptor, 0o644)
            os.rename(new, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(new)
            raise
    except OSError as exc:
        raise SourceError(f"cannot write {path}: {exc.strerror}") from exc


COMMANDS: list[click.Command] = [metrics]
