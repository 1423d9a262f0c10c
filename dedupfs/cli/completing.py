"""Answers a shell that completes a command line: words in, candidates out. Knows no command.

Whatever goes wrong (no store, somebody else's, a bug), nothing is said: the user is in the middle
of a line. The answer's form is told in ``completion``.
"""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

import click
from click.shell_completion import CompletionItem, ShellComplete

_BACKSLASHED_IN_DOUBLE = '\\"$`\n'
_ANSI_C = {"n": "\n", "t": "\t", "r": "\r", "e": "\x1b", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


class _Completer(ShellComplete):
    """click's knowledge of what comes next, of words that are known already."""

    name = "dedupfs"
    source_template = ""


def answer(app: click.Command, shell: str, arguments: Sequence[str], program: str) -> int:
    """Write the candidates to standard output, and return the exit code."""
    logging.disable()
    with suppress(Exception):
        cut = 0
        if shell == "bash":
            breaks, line = arguments
            words, cut = split_line(line, breaks)
        else:
            words = list(arguments)
            if shell == "fish":  # which gives the last one as it was typed
                words[-1:] = split_line(words[-1], "")[0][-1:]
        found = candidates(app, words[1:] if shell == "bash" else words, program)
        sys.stdout.buffer.write(b"".join(_records(found, words[-1], cut)))
        sys.stdout.flush()
    return 0


def candidates(app: click.Command, words: Sequence[str], program: str) -> Iterable[CompletionItem]:
    """Return whole words for the last of ``words``; of those after it nothing is known."""
    *before, incomplete = words
    name, equals, _ = incomplete.partition("=")
    prefix = name + equals if equals and name.startswith("--") else ""
    for item in _Completer(app, {}, program, "").get_completions(before, incomplete):
        yield CompletionItem(prefix + item.value, item.type, item.help, **item._info)


def _records(found: Iterable[CompletionItem], incomplete: str, cut: int) -> Iterable[bytes]:
    """Yield what the shell reads. It replaces what comes after ``cut`` characters of the word."""
    for item in found:
        is_open = item.type == "plain" and item.value.endswith(("/", "="))
        kind = "open" if is_open else item.type
        if kind in ("plain", "open") and not item.value.startswith(incomplete):
            continue
        for field in (kind, item.value[cut:], " ".join((item.help or "").split())):
            yield os.fsencode(field) + b"\0"


def split_line(line: str, breaks: str) -> tuple[list[str], int]:
    """Return the words of a line of bash that is cut off anywhere, and where readline begins.

    The last word is the one under the cursor, perhaps empty; the number says how many characters
    of it readline leaves as they are: up to an open quote, or to the last of ``breaks``.
    """
    words: list[str] = []
    word, cut, quote, began = "", 0, "", False
    position = 0
    while position < len(line):
        character = line[position]
        position += 1
        if quote == "'" or (quote and character != "\\"):
            if character == quote[-1]:
                quote, cut = "", len(word)
            else:
                word += character
        elif character == "\\":
            following = line[position : position + 1]
            position += 1
            word += _backslashed(following, quote)
            began = True
        elif character in "'\"":
            ansi_c = character == "'" and word.endswith("$")
            word = word.removesuffix("$") if ansi_c else word
            quote, cut, began = ("$'" if ansi_c else character), len(word), True
        elif character.isspace():
            if began:
                words.append(word)
            word, cut, began = "", 0, False
        else:
            word += character
            began = True
            if character in breaks:
                cut = len(word)
    return [*words, word], cut


def _backslashed(following: str, quote: str) -> str:
    """Return what a backslash and the character after it stand for."""
    if quote == '"' and following not in _BACKSLASHED_IN_DOUBLE:
        return "\\" + following
    if quote == "$'":
        return _ANSI_C.get(following, following)
    return "" if following == "\n" else following
