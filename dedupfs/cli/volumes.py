"""The command volume-plugin: views as volumes of Docker and Podman.

Knows how to start and end the plugin, not what it does. Specified in docs/cli.md.
"""

import os
import signal
import socket
from pathlib import Path

import click

from dedupfs.cli import background, output
from dedupfs.cli.arguments import completed_with
from dedupfs.errors import StoreError

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

    is_root = os.geteuid() == 0
    paths = [Path(os.path.realpath(store)) for store in stores]
    directory = Path(os.path.realpath(state or _default_state(is_root=is_root)))
    background.log_to_stderr()
    ledger = Ledger.open(directory)
    try:
        mounter = Mounter(directory / "mounts", allow_other or is_root)
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
        ledger.close()


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


COMMANDS: list[click.Command] = [volume_plugin]
