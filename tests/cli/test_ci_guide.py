"""The pipelines of docs/guide/ci.md are YAML, and call dedupfs as it is.

Method: the blocks as they stand there, read by the system's Python, whose yaml the tests' lacks;
what they call is parsed by the real commands and not run. The guide's own commands are run by
tests/test_guides.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dedupfs.cli.app import app
from tests.guide_yaml import documents, yaml_blocks

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "ci.md"


def pipeline(number: int) -> object:
    (found,) = documents(yaml_blocks(GUIDE)[number])
    return found


def commands(value: object) -> Iterator[list[str]]:
    """Yield every call of dedupfs that stands in a pipeline, as words."""
    if isinstance(value, dict):
        for part in value.values():
            yield from commands(part)
    elif isinstance(value, list):
        for part in value:
            yield from commands(part)
    elif isinstance(value, str) and value.startswith("dedupfs "):
        yield shlex.split(re.sub(r"\$\{\{.*?\}\}", "x", value))[1:]


@pytest.mark.parametrize("number", [0, 1], ids=["github", "gitlab"])
def test_a_pipeline_calls_commands_and_options_that_there_are(number: int) -> None:
    called = list(commands(pipeline(number)))
    assert [words[0] for words in called] == ["import", "run", "prune"]
    for words in called:
        context = click.Context(app)
        command = app.get_command(context, words[0])
        assert command is not None
        command.make_context(words[0], words[1:], parent=context)
