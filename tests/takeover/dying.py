"""A supervised mount whose first daemon kills itself in the middle of one request.

    python -m tests.takeover.dying STORE MOUNTPOINT OPERATION[,OPERATION] before|after [USER]

Killed before the view has done OPERATION, or after it and before the kernel gets the answer; with a
second OPERATION the second daemon dies, too, after that. The supervisor and the daemons after these
are the real ones.
"""

import functools
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from dedupfs.cli.upgrade import SupervisedMount
from dedupfs.fuse import server, supervisor
from dedupfs.fuse.relay import Baton
from dedupfs.fuse.session import prepare_mountpoint
from dedupfs.namespace.view import View
from dedupfs.store.store import Store
from tests.fuse.daemon import say
from tests.fuse.harness import become


def dying(operation: str, when: str) -> type[View]:
    """Return a View that dies at the first call of one of its methods."""
    do = getattr(View, operation)

    @functools.wraps(do)
    def last(*args: Any, **kwargs: Any) -> Any:
        if when == "after":
            do(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    return type("DyingView", (View,), {operation: last})


def main(
    store_path: Path, mountpoint: Path, operation: str, when: str, user: int | None = None
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if user is not None:
        become(user)
    options = server.MountOptions(supervisor=os.getpid())
    server.ensure_store(store_path)
    mountpoint = prepare_mountpoint(mountpoint, store_path)
    os.chdir("/")

    mounted = SupervisedMount(store_path, mountpoint, options)
    first, _, second = operation.partition(",")
    second_was_there = store_path.parent / "second"

    def daemon(baton: Baton | None, ready: server.Ready) -> None:
        if baton is not None:
            if second and not second_was_there.exists():
                second_was_there.touch()
                server.View = dying(second, "after")  # type: ignore[attr-defined]
            mounted.serve(baton, ready)
            return
        with Store.open(store_path) as store:
            view = dying(first, when).bring_back(store, mountpoint=str(mountpoint))
            server.serve_view(view, store_path, mountpoint, options, ready)

    supervisor.supervise(daemon, lambda: say(sys.stdout, "ready"), mounted)


if __name__ == "__main__":
    _program, *paths, wanted, moment = sys.argv[:5]
    main(Path(paths[0]), Path(paths[1]), wanted, moment, *map(int, sys.argv[5:]))
