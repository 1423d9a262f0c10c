"""Mounts and commands for the tests of security."""

from tests.cli.conftest import Ran, Run, run
from tests.fuse.conftest import daemons, open_directory

__all__ = ["Ran", "Run", "daemons", "open_directory", "run"]
