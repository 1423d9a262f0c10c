"""A daemon for the tests: serves in the foreground and says "ready" on standard output.

    python -m tests.fuse.daemon STORE MOUNTPOINT '{"view": "default", "user": 65534, ...}'

What goes wrong before that is one line on standard error, "ErrorClass: message". Options that
are the daemon's own: ``user`` to be, ``traced``: log every request, ``plain``: find no way to wait
for requests but pyfuse3's own, hence make no handshake either.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from dedupfs.errors import DedupfsError
from dedupfs.fuse import operations, server, waiting
from tests.fuse.harness import become


def say(stream: TextIO, line: str) -> None:
    stream.write(f"{line}\n")
    stream.flush()


def main(store: str, mountpoint: str, options: dict[str, Any]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    os.chdir("/")
    user = options.pop("user", None)
    if user is not None:
        become(user)
    if options.pop("traced", False):
        operations.log.setLevel(logging.DEBUG)
    if options.pop("plain", False):
        waiting._NAME = "no such name"  # as in a pyfuse3 that calls it something else
    try:
        server.ensure_store(Path(store))
        server.serve(
            Path(store),
            Path(mountpoint),
            server.MountOptions(**options),
            lambda _baton: say(sys.stdout, "ready"),
        )
    except DedupfsError as exc:
        say(sys.stderr, f"{type(exc).__name__}: {exc}")
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
