"""Hatch's hook: what a wheel puts beside the package, below the prefix that pip installs to.

Manual pages and completion scripts are made here, of what the command itself says; the units of
systemd are copied. Needs click, msgspec and xxhash, which pyproject.toml names as requirements of
the build. Where the files lie, and why: docs/architecture.md, "Decisions".
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def _make(below: Path) -> None:
    """Write pages and scripts where they lie below the prefix."""
    from dedupfs.cli.app import app  # noqa: PLC0415 - there is no path to it before
    from dedupfs.cli.completion import INSTALLED_AS, script  # noqa: PLC0415
    from dedupfs.cli.man import write_pages  # noqa: PLC0415

    write_pages(app, below / "share" / "man")
    for shell, place in INSTALLED_AS.items():
        (below / place).parent.mkdir(parents=True)
        (below / place).write_text(script(shell))


class BuildHook(BuildHookInterface[Any]):
    """Adds to a wheel; an sdist has what all of it is made of."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the files and name them. An editable install has none: they would soon be old."""
        if version == "editable":
            return
        root = Path(self.root)
        self._made = tempfile.TemporaryDirectory(prefix="dedupfs-build-")
        below = Path(self._made.name)
        sys.path.insert(0, self.root)
        writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            _make(below)
        finally:
            sys.path.remove(self.root)
            sys.dont_write_bytecode = writes_bytecode
        shared = {path: path.relative_to(below) for path in below.rglob("*") if path.is_file()}
        for unit in (root / "systemd").rglob("dedupfs*"):
            user = unit.parent.name == "user"
            place = Path("lib/systemd", "user" if user else "system", unit.name)
            shared[unit] = place
        build_data["shared_data"].update({str(made): str(at) for made, at in shared.items()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was made."""
        del version, build_data, artifact_path
        if hasattr(self, "_made"):
            self._made.cleanup()
