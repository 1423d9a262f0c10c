"""The command line: argv -> one call -> text and an exit code. The only place that exits.

``main`` maps every failure to one line on standard error and the code that docs/cli.md lists.
"""

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in ``argv`` (default: the process's own) and return its exit code."""
    from dedupfs.cli.app import app
    from dedupfs.cli.failures import run

    if argv is None:
        from dedupfs.cli.crashes import tell_crashes

        tell_crashes()
    return run(app, argv)
