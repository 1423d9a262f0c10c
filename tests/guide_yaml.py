"""The YAML blocks of a guide, read by the system's Python, whose yaml the tests' lacks."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

_SYSTEM_PYTHON = Path("/usr/bin/python3")
_READ = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)"


def yaml_blocks(guide: Path) -> list[str]:
    """Return the text of each block."""
    return re.findall(r"^```yaml\n(.*?)^```$", guide.read_text(), re.DOTALL | re.MULTILINE)


def documents(block: str) -> list[Any]:
    """Return the documents of a block; skip the test where nothing reads YAML."""
    if not _SYSTEM_PYTHON.exists():
        pytest.skip(f"not installed: {_SYSTEM_PYTHON}")
    done = subprocess.run(
        [_SYSTEM_PYTHON, "-c", _READ],
        input=block,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "No module named 'yaml'" in done.stderr:
        pytest.skip("not installed: python3-yaml")
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found
