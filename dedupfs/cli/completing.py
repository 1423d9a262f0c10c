"""Answers a shell that completes a command line: words in, candidates out. Knows no command.

Whatever goes wrong (no store, somebody else's, a bug), nothing is said: the user is in the middle
of a line. The answer's form is told in ``completion``.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
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
        cut, quote = 0, None
        if shell == "bash":
            breaks, line = arguments
            (_program, *words), cut, quote = split_line(line, breaks)
        else:
            words = list(arguments)
            if shell == "fish":  # which gives the last one as it was typed
                words[-1:] = split_line(words[-1], "")[0][-1:]
        for item in candidates(app, words, program):
            sys.stdout.buffer.write(_record(item, words[-1], cut, quote))
        sys.stdout.flush()
    return 0


def candidates(app: click.Command, words: Sequence[str], program: str) -> Iterable[CompletionItem]:
    """Return whole words for the last of ``words``; of those after it nothing is known."""
    *before, incomplete = words
    name, equals, _ = incomplete.partition("=")
    prefix = name + equals if equals and name.startswith("--") else ""
    for item in _Completer(app, {}, program, "").get_completions(before, incomplete):
        yield CompletionItem(prefix + item.value, item.type, item.help, **item._info)


def _record(item: CompletionItem, incomplete: str, cut: int, quote: str | None) -> bytes:
    """Return what the shell reads. It replaces what comes after ``cut`` characters of the word.

    ``quote`` is what a shell is in that wants the value as it is to be typed.
    """
    if item.type != "plain":
        return b"%s\0\0\0" % item.type.encode()
    if not item.value.startswith(incomplete):
        return b""
    kind = "open" if item.value.endswith(("/", "=")) else "plain"
    value = item.value[cut:]
    typed = value if quote is None else quoted(value, quote)
    words = " ".join((item.help or "").split())
    # The value is shown as each shell shows what it would type; this goes to the terminal.
    about = "".join(each if each.isprintable() else "?" for each in words)
    return b"".join(os.fsencode(field) + b"\0" for field in (kind, typed, about))


def quoted(text: str, quote: str) -> str:
    """Return what is to be typed into bash for ``text``, where ``quote`` is open, or none ("")."""
    other = {"\n": f"{quote[-1:]}$'\\n'{quote}"}  # a newline has no other way to be typed
    if quote == '"':
        other["!"] = "\"'!'\""  # is history's, even in double quotes
    parts = re.split(f"([{''.join(other)}])", text)
    return "".join(other.get(part) or _SPECIAL[quote](part) for part in parts)


_SPECIAL: dict[str, Callable[[str], str]] = {
    "": lambda text: re.sub(r"""([\s"'\\<>;|&()#$`?*\[\]!{}~^,])""", r"\\\1", text),
    "'": lambda text: text.replace("'", "'\\''"),
    '"': lambda text: re.sub(r'(["\\$`])', r"\\\1", text),
    "$'": lambda text: re.sub(r"(['\\])", r"\\\1", text),
}


def split_line(line: str, breaks: str) -> tuple[list[str], int, str]:
    """Return the words of a line of bash that is cut off anywhere, and where readline begins.

    The last word is the one under the cursor, perhaps empty; the number says how many characters
    of it readline leaves as they are: up to an open quote, or to the last of ``breaks``. The text
    is the open quote.
    """
    words: list[str] = []
    word, cut, quote, began = "", 0, "", False
    position, after_dollar = 0, -1
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
            ansi_c = character == "'" and position - 1 == after_dollar
            word = word.removesuffix("$") if ansi_c else word
            quote, cut, began = ("$'" if ansi_c else character), len(word), True
        elif character.isspace():
            if began:
                words.append(word)
            word, cut, began = "", 0, False
        else:
            word += character
            began = True
            if character == "$":
                after_dollar = position
            if character in breaks:
                cut = len(word)
    return [*words, word], cut, quote


def _backslashed(following: str, quote: str) -> str:
    """Return what a backslash and the character after it stand for."""
    if quote == '"' and following not in _BACKSLASHED_IN_DOUBLE:
        return "\\" + following
    if quote == "$'":
        return _ANSI_C.get(following, following)
    return "" if following == "\n" else following
