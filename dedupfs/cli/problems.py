"""What could not be done of a long command, while everything else was: as lines and as JSON."""

from typing import TYPE_CHECKING

from dedupfs.cli import output
from dedupfs.errors import CorruptError

if TYPE_CHECKING:
    from dedupfs.transfer.report import Problem

SHOWN_MAX = 20


class ToldError(CorruptError):
    """What is wrong was told line by line, and what to do about it: there is no more to say."""


class Complaints:
    """Prints the first problems as they come, and that there are more."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, problem: "Problem") -> None:
        """Print a problem, unless there were too many."""
        self._count += 1
        if self._count <= SHOWN_MAX:
            output.note(str(problem))
        elif self._count == SHOWN_MAX + 1:
            output.note("there are more problems; --json lists all of them")


def print_problems(problems: "list[Problem]") -> None:
    """Print the first problems, and how many more there are."""
    for problem in problems[:SHOWN_MAX]:
        output.note(str(problem))
    if len(problems) > SHOWN_MAX:
        output.note(f"and {len(problems) - SHOWN_MAX} more; --json lists all of them")


def problems_json(problems: "list[Problem]") -> list[output.Json]:
    """Return problems as JSON has them."""
    return [
        {"path": output.text_of(problem.path), "message": problem.message} for problem in problems
    ]
