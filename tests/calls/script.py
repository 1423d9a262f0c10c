"""Tables of system calls and what each must answer, read from text.

    alice: a name in a directory that forbids it            the case; all its calls are alice's
        mkdir d 555                                         must succeed
        create d/f 644                  = EACCES            must fail so
        root: stat d mode               = 0555              must return this; by somebody else
        fallocate @f 0 10               = 0 mounts: EOPNOTSUPP      a known difference

Blank lines part the cases, ``#`` starts a comment. A word in capitals that ``read_cases`` gets as
keyword stands for each of its values in turn. ``@f`` is a descriptor that ``open ... as f`` left.
Who there is and what can be called: actor.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.calls.actor import IDS

OWNER = ""
"""Whoever owns the place: root, or on an ordinary user's mount that user."""

_WHO = re.compile(r"([a-z]+(?:[/+][a-z]+)*): +(.*)")
_NEEDS_ROOT = re.compile(r"(l?chown|setcap|hascap) |(make|mknod .*) (char|block)\b")


@dataclass(frozen=True, slots=True)
class Step:
    """One call: who makes it, its words, and what it must answer natively and on a mount."""

    who: str
    words: tuple[str, ...]
    native: str | None
    mounted: str | None

    def __str__(self) -> str:
        return f"{self.who or 'owner'}: {' '.join(self.words)}"


@dataclass(frozen=True, slots=True)
class Case:
    """A few calls in a directory of their own."""

    name: str
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return self.name

    @property
    def actors(self) -> frozenset[str]:
        return frozenset(step.who for step in self.steps)

    @property
    def needs_root(self) -> bool:
        """Whether it takes several users, or what only root may."""
        return self.actors != {OWNER} or self.privileged

    @property
    def privileged(self) -> bool:
        return any(_NEEDS_ROOT.match(" ".join(step.words)) for step in self.steps)


def read_cases(text: str, **variables: str | list[str]) -> list[Case]:
    """Read a table; a variable's values are words, or the members of a list."""
    cases = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.partition("#")[0].strip() for line in block.splitlines()]
        kept = "\n".join(line for line in lines if line)
        cases += [_read_case(one) for one in _expanded(kept, variables) if one]
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases have the same name"
    return cases


def _expanded(block: str, variables: dict[str, str | list[str]]) -> Iterator[str]:
    used = [name for name in variables if re.search(rf"\b{name}\b", block)]
    values = [variables[name] for name in used]
    choices = [value.split() if isinstance(value, str) else value for value in values]
    for chosen in itertools.product(*choices):
        one = block
        for name, value in zip(used, chosen, strict=True):
            one = re.sub(rf"\b{name}\b", lambda _match, value=value: value, one)  # type: ignore[misc]
        yield one


def _read_case(block: str) -> Case:
    head, *lines = block.splitlines()
    who, name = _who(head, OWNER)
    assert lines, f"no calls: {name}"
    return Case(
        name if who == OWNER else f"{who}: {name}", tuple(_read_step(i, who) for i in lines)
    )


def _read_step(line: str, default: str) -> Step:
    who, rest = _who(line, default)
    call, has_answer, answer = rest.partition(" = ")
    native, differs, mounted = answer.partition(" mounts: ")
    if not has_answer:
        return Step(who, tuple(call.split()), None, None)
    return Step(
        who, tuple(call.split()), native.strip(), mounted.strip() if differs else native.strip()
    )


def _who(line: str, default: str) -> tuple[str, str]:
    found = _WHO.fullmatch(line)
    if found is None:
        return default, line
    assert set(re.split("[/+]", found[1])) <= set(IDS), f"who is {found[1]}?"
    return found[1], found[2]
