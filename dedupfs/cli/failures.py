"""Failures -> one line on standard error and an exit code. Knows no command.

Source: docs/cli.md, "Exit codes"; errors.py gives each expected failure its code.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

import click

from dedupfs.cli import output
from dedupfs.errors import CorruptError, DedupfsError, MissingRecordError

BUG_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT
BROKEN_PIPE_EXIT_CODE = 141  # 128 + SIGPIPE, as if the signal had ended us
OUTPUT_EXIT_CODE = 7
USAGE_EXIT_CODE = 2
PROGRAM = "dedupfs"
COMPLETION_VARIABLE = "_DEDUPFS_COMPLETE"
_OUTPUT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What only standard output is left to raise: all other files' errors were translated below."""


def run(app: click.Command, argv: Sequence[str] | None) -> int:
    """Run ``app`` and return the exit code; nothing is raised."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if COMPLETION_VARIABLE in os.environ:
        from dedupfs.cli.completing import answer

        return answer(app, os.environ[COMPLETION_VARIABLE], arguments, PROGRAM)
    try:
        # Not app.main: it would end the process itself when standard output is closed.
        with app.make_context(PROGRAM, arguments) as context:
            app.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        return USAGE_EXIT_CODE
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE_EXIT_CODE
    except click.ClickException as exc:
        _say(_usage_line(exc))
        return USAGE_EXIT_CODE
    except DedupfsError as exc:
        if is_debugging():
            traceback.print_exc()
        _say(str(exc) + _way_out(exc))
        return exc.exit_code
    except Exception as exc:  # noqa: BLE001  the one place that may not let anything through
        return _unexpected(exc)
    return 0


def is_debugging() -> bool:
    """Whether --debug was given; a failure may come before the group has parsed it."""
    return "--debug" in sys.argv or bool(os.environ.get("DEDUPFS_DEBUG"))


def _usage_line(exc: click.ClickException) -> str:
    message = " ".join(exc.format_message().split())
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    if context is None:
        return message
    return f"{message} (see: {context.command_path} --help)"


def _way_out(exc: DedupfsError) -> str:
    """Return what to do about a damaged record, where whoever came upon it could not know that."""
    if type(exc) not in (CorruptError, MissingRecordError) or "dedupfs " in str(exc):
        return ""
    return "; 'dedupfs check' tells what it hits, 'dedupfs check --repair' mends what can be mended"


def _unexpected(exc: Exception) -> int:
    if is_debugging():
        traceback.print_exc()
    kind = type(exc).__name__
    detail = " ".join(str(exc).split())
    if isinstance(exc, OSError) and exc.filename is None and exc.errno in _OUTPUT_ERRNOS:
        _say(f"cannot write the output: {exc.strerror}")
        _drop_output()
        return OUTPUT_EXIT_CODE
    _say(
        f"unexpected {kind}: {detail}; this is a bug: please report it with what "
        "'dedupfs --debug ...' prints"
    )
    return BUG_EXIT_CODE


def _say(message: str) -> None:
    with suppress(OSError):  # nobody listens; the exit code still tells
        print(f"dedupfs: {output.printable(message)}", file=sys.stderr, flush=True)


def _drop_output() -> None:
    """Let the interpreter's last flush go nowhere, so that it cannot complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
