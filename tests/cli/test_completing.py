"""Completion: what a store has is offered to real shells, whatever characters are in it.

Method: bash runs its completion function on a line as readline calls it; zsh and fish are driven
through a terminal and by ``complete --do-complete``. The line that comes of it is run.
"""

from __future__ import annotations

import pytest

from dedupfs.cli import completing

BREAKS = " \t\n\"'@><=;|&(:"


@pytest.mark.parametrize(
    ("line", "words", "cut"),
    [
        ("dedupfs ", ["dedupfs", ""], 0),
        ("dedupfs ls st", ["dedupfs", "ls", "st"], 0),
        ("ls st snap:dir/f", ["ls", "st", "snap:dir/f"], 5),
        ("mount --view=a", ["mount", "--view=a"], 7),
        ("ls 'a b' c\\ d\\:e", ["ls", "a b", "c d:e"], 0),
        ('ls "a b', ["ls", "a b"], 0),
        ("ls x'a b", ["ls", "xa b"], 1),
        ("ls 'it'\\''s ' \"q\\\"\\n\" $'n\\n\\'", ["ls", "it's ", 'q"\\n', "n\n'"], 0),
        ("ls a@b", ["ls", "a@b"], 2),
        ("ls ''  ", ["ls", "", ""], 0),
    ],
)
def test_a_line_is_split_as_bash_and_readline_split_it(
    line: str, words: list[str], cut: int
) -> None:
    assert completing.split_line(line, BREAKS) == (words, cut)
