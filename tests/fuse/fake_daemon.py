"""A mount of a view in a dictionary, which has one bug: looking up "bug" divides by zero.

python -m tests.fuse.fake_daemon DIRECTORY MOUNTPOINT '{}'
"""

import logging
import sys
from pathlib import Path
from typing import cast

from dedupfs.fuse import server, session
from dedupfs.model import Attr
from dedupfs.namespace.view import View
from tests.fuse.daemon import say
from tests.fuse.fakes import FakeView


class BuggyView(FakeView):
    def lookup(self, parent: int, name: bytes) -> Attr:
        if name == b"bug":
            raise ZeroDivisionError
        return super().lookup(parent, name)


def main(directory: Path, mountpoint: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    (directory / "run").mkdir(parents=True)
    resolved = session.prepare_mountpoint(mountpoint, directory)
    view = cast(View, BuggyView())
    options = server.MountOptions()
    server.serve_view(view, directory, resolved, options, lambda _baton: say(sys.stdout, "ready"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
