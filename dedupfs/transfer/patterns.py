"""gitignore patterns: text -> what they say of a name. Pure; knows no files.

A pattern says something of what it matches itself and nothing of what is below: who walks a tree
does not enter what is excluded, which is all that "a parent that is excluded" means. Everything is
bytes, as it is for git: ``?`` is one byte.

Each pattern becomes a regular expression that cannot take more than quadratic time, for it may come
from a stranger's tree: the first place where a piece between two asterisks fits is as good as any
later one, so it is never taken back. Source: gitignore(5); git's dir.c (parse_path_pattern) and
wildmatch.c (brackets); fnmatch.translate of Python 3.12 (the atomic groups).
"""

import re
import string
from collections.abc import Iterable
from dataclasses import dataclass

_SLASH, _STAR, _ANY = b"/", b"*", b"?"
_UTF8_MARK = b"\xef\xbb\xbf"
_CLASSES: dict[bytes, bytes] = {
    b"alpha": string.ascii_letters.encode(),
    b"digit": string.digits.encode(),
    b"alnum": (string.ascii_letters + string.digits).encode(),
    b"upper": string.ascii_uppercase.encode(),
    b"lower": string.ascii_lowercase.encode(),
    b"punct": string.punctuation.encode(),
    b"xdigit": string.hexdigits.encode(),
    b"space": b" \t\n\v\f\r",
    b"blank": b" \t",
    b"cntrl": bytes([*range(32), 127]),
    b"print": bytes(range(32, 127)),
    b"graph": bytes(range(33, 127)),
}


class _NeverMatches(Exception):
    """The pattern is malformed: git lets it match nothing."""


@dataclass(frozen=True, slots=True)
class _Token:
    """A piece of a pattern: ``kind`` is "/", "*" (any number of them), or the set of bytes."""

    kind: bytes
    expression: bytes = b""
    count: int = 1


@dataclass(frozen=True, slots=True)
class _Pattern:
    excludes: bool
    only_directories: bool
    only_name: bool
    """Whether it has no slash, and so is about names wherever they are."""
    expression: bytes

    @property
    def compiled(self) -> re.Pattern[bytes]:
        return re.compile(self.expression, re.DOTALL)


class Patterns:
    """Patterns of one file, or of a command line; the last one that matches decides."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        parsed = [pattern for line in lines if (pattern := _parse(line)) is not None]
        self._rules = [(pattern, pattern.compiled.fullmatch) for pattern in reversed(parsed)]
        self._any_name = _any_of(p.expression for p in parsed if p.only_name)
        self._any_path = _any_of(p.expression for p in parsed if not p.only_name)

    def __bool__(self) -> bool:
        return bool(self._rules)

    def excludes(self, name: bytes, prefix: bytes, is_directory: bool) -> bool | None:
        """Return whether ``prefix + name`` is excluded; None when nothing is said of it.

        ``prefix``: the path of its directory, from where the patterns apply, ending with a slash;
        empty at the top.
        """
        path = prefix + name
        if not (
            (self._any_name is not None and self._any_name.fullmatch(name))
            or (self._any_path is not None and self._any_path.fullmatch(path))
        ):
            return None
        for pattern, matches in self._rules:
            if (is_directory or not pattern.only_directories) and matches(
                name if pattern.only_name else path
            ):
                return pattern.excludes
        return None


def lines_of(text: bytes) -> list[bytes]:
    """Return the lines of a file of patterns."""
    lines = text.removeprefix(_UTF8_MARK).split(b"\n")
    return [line.removesuffix(b"\r") for line in lines]


def _any_of(expressions: Iterable[bytes]) -> re.Pattern[bytes] | None:
    joined = b"|".join(b"(?:%s)" % expression for expression in expressions)
    return re.compile(joined, re.DOTALL) if joined else None


def _parse(line: bytes) -> _Pattern | None:
    """Return the pattern in a line; None when there is none, or one that matches nothing."""
    if line.startswith(b"#"):
        return None
    text = _without_spaces(line)
    excludes = not text.startswith(b"!")
    text = text if excludes else text[1:]
    only_directories = text.endswith(_SLASH)
    text = text[:-1] if only_directories else text
    only_name = _SLASH not in text
    try:
        expression = _translate(_tokens(text.removeprefix(_SLASH)))
    except _NeverMatches:
        return None
    return _Pattern(excludes, only_directories, only_name, expression)


def _without_spaces(line: bytes) -> bytes:
    """Return a line without the spaces at its end that no backslash keeps."""
    kept = line.rstrip(b" ")
    backslashes = len(kept) - len(kept.rstrip(b"\\"))
    return line[: len(kept) + 1] if backslashes % 2 and len(kept) < len(line) else kept


def _tokens(text: bytes) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        char = text[at : at + 1]
        at += 1
        if char == _STAR:
            stop = len(text) - len(text[at:].lstrip(_STAR))
            tokens.append(_Token(_STAR, count=stop - at + 1))
            at = stop
        elif char == _ANY:
            tokens.append(_Token(_ANY, b"[^/]"))
        elif char == b"[":
            expression, at = _bracket(text, at)
            tokens.append(_Token(_ANY, expression))
        else:
            if char == b"\\":
                char = text[at : at + 1]
                at += 1
                if not char:
                    raise _NeverMatches
            tokens.append(_Token(_SLASH) if char == _SLASH else _Token(_ANY, re.escape(char)))
    return tokens


def _bracket(text: bytes, at: int) -> tuple[bytes, int]:
    """Return the set of bytes that begins behind a "[", and where the pattern goes on."""
    negated = text[at : at + 1] in (b"!", b"^")
    at += negated
    members: set[int] = set()
    before = -1
    first = True
    while first or text[at : at + 1] != b"]":
        first = False
        char = text[at : at + 1]
        if char == b"-" and before >= 0 and text[at + 1 : at + 2] not in (b"", b"]"):
            last, at = _member(text, at + 1)
            members.update(range(before, last + 1))
            before = -1
        elif text[at : at + 2] == b"[:" and (found := _named_class(text, at + 2)) is not None:
            named, at = found
            members.update(named)
            before = -1
        else:
            before, at = _member(text, at)
            members.add(before)
    members.discard(_SLASH[0])
    inside = b"".join(b"\\x%02x" % member for member in sorted(members))
    if negated:
        return b"[^/%s]" % inside, at + 1
    if not inside:
        raise _NeverMatches
    return b"[%s]" % inside, at + 1


def _member(text: bytes, at: int) -> tuple[int, int]:
    at += text[at : at + 1] == b"\\"
    if at >= len(text):
        raise _NeverMatches
    return text[at], at + 1


def _named_class(text: bytes, at: int) -> tuple[bytes, int] | None:
    stop = text.find(b"]", at)
    if stop < 0:
        raise _NeverMatches
    if stop == at or text[stop - 1 : stop] != b":":
        return None
    members = _CLASSES.get(text[at : stop - 1])
    if members is None:
        raise _NeverMatches
    return members, stop + 1


def _translate(tokens: list[_Token]) -> bytes:
    """Return the expression: segments between slashes, each in turn, ``**`` for any number."""
    segments: list[list[_Token]] = [[]]
    for token in tokens:
        if token.kind == _SLASH:
            segments.append([])
        else:
            segments[-1].append(token)
    pieces: list[list[bytes]] = [[]]
    for segment in segments:
        if not segment:
            raise _NeverMatches
        if len(segment) == 1 and segment[0].count > 1:
            pieces.append([])
        else:
            pieces[-1].append(_segment(segment))
    first, *others = pieces
    expression = b"".join(piece + _SLASH for piece in first)
    if not others:
        return expression[:-1]
    *middle, last = others
    for piece in middle:
        if piece:
            expression += b"(?>(?:[^/]+/)*?%s/)" % _SLASH.join(piece)
    if not last:
        return expression + b".+"
    return expression + b"(?:[^/]+/)*?" + _SLASH.join(last)


def _segment(tokens: list[_Token]) -> bytes:
    """Return the expression of what has no slash in it, and of nothing longer or shorter."""
    pieces = [b""]
    for token in tokens:
        if token.kind == _STAR:
            pieces.append(b"")
        else:
            pieces[-1] += token.expression
    first, *others = pieces
    if not others:
        return first
    *middle, last = others
    between = b"".join(b"(?>[^/]*?%s)" % piece for piece in middle if piece)
    is_any = not (first or between or last)
    return b"[^/]+" if is_any else first + between + b"[^/]*" + last
