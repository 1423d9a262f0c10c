"""The command volume-plugin: views as volumes of Docker and Podman.

Knows how to start and end the plugin, not what it does. Specified in docs/cli.md.
"""

import functools
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dedupfs.cli import background, output
from dedupfs.cli.arguments import DEFAULT_VIEW, completed_with
from dedupfs.errors import StoreError

if TYPE_CHECKING:
    from dedupfs.volumes.options import Options

SOCKET = Path("/run/docker/plugins/dedupfs.sock")


@click.command("volume-plugin")
@click.argument(
    "stores",
    metavar="STORE...",
    nargs=-1,
    required=True,
    type=click.Path(),
    shell_complete=completed_with("directory"),
)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    default=SOCKET,
    show_default=True,
    help="Where Docker or Podman asks.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Where volumes are kept and mounted (default: /var/lib/dedupfs-volumes).",
)
@click.option("--allow-other", is_flag=True, help="Let other users in (as root always).")
def volume_plugin(
    stores: tuple[str, ...], socket_path: Path, state: Path | None, allow_other: bool
) -> None:
    """Give views of STORE to Docker or Podman as volumes, until told to end; mounts stay.

    \b
    Examples:
      dedupfs volume-plugin /srv/store
      docker volume create -d dedupfs -o snapshot=step-1000 job17
      docker run -v job17:/data IMAGE
    """
    from dedupfs.volumes import server
    from dedupfs.volumes.driver import Driver
    from dedupfs.volumes.ledger import Ledger
    from dedupfs.volumes.mounts import Mounter
    from dedupfs.volumes.workers import Workers

    is_root = os.geteuid() == 0
    paths = [Path(os.path.realpath(store)) for store in stores]
    directory = Path(os.path.realpath(state or _default_state(is_root=is_root)))
    background.log_to_stderr()
    ledger = Ledger.open(directory)
    workers = Workers(directory)
    try:
        workers.start()  # imports while we do
        mounter = Mounter(directory / "mounts", allow_other or is_root, workers)
        driver = Driver(paths, ledger, mounter, output.parse_size)
        listener = server.passed_listener()
        made = listener is None
        with server.PluginServer(listener or _listen(socket_path), driver) as plugin:
            try:
                driver.recover()
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, lambda _number, _frame: plugin.end())
                plugin.serve_forever()
            finally:
                if made:
                    socket_path.unlink(missing_ok=True)
    finally:
        workers.close()
        ledger.close()


@click.command("volume-workers", hidden=True)
@click.argument("lock", type=click.Path(path_type=Path))
def volume_workers(lock: Path) -> None:
    """Mount and unmount for the volume plugin, which is at the other end of standard input."""
    from dedupfs.cli import mounts, upgrade  # noqa: F401 - what all mounts need
    from dedupfs.fuse import server  # noqa: F401 - the same
    from dedupfs.volumes import workers
    from dedupfs.volumes.mounts import carry_out

    background.log_to_stderr()
    with socket.socket(fileno=0) as orders:
        workers.serve(orders, lock, lambda order: carry_out(order, _mount))


def _mount(place: Path, options: "Options", allow_other: bool) -> None:
    from dedupfs.cli import mounts

    body = functools.partial(
        mounts.serve,
        Path(options.store),
        place,
        create=False,
        snapshot=options.snapshot if options.snapshot and not options.view else None,
        view=options.view or DEFAULT_VIEW,
        ephemeral=options.ephemeral,
        read_only=options.read_only,
        allow_other=allow_other,
        # the limit of a view that is kept was set when that was made
        limit_bytes=options.limit_bytes if options.ephemeral else None,
        labels=f'context="{options.context}"' if options.context else "",
    )
    background.run_in_background(body)


def _listen(path: Path) -> socket.socket:
    from dedupfs.volumes import server

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StoreError(f"cannot make {path.parent}: {exc.strerror}") from exc
    return server.listen(path)


def _default_state(*, is_root: bool) -> Path:
    if is_root:
        return Path("/var/lib/dedupfs-volumes")
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "dedupfs-volumes"


COMMANDS: list[click.Command] = [volume_plugin, volume_workers]
