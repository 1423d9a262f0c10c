"""What the judge of the power cuts lets pass: a time that changed with bytes, and no other."""

from __future__ import annotations

import pytest

from tests.powercut.ledger import Op
from tests.powercut.matching import Found, LostError, Matcher, Shown
from tests.powercut.model import DIRECTORY, FILE, Content, Node, Tree
from tests.powercut.patterns import pattern

BUFFERED_BYTES_MAX = 4096
LARGE_BYTES = 3 * BUFFERED_BYTES_MAX
SYNCED_NS = 1_000
SEED = 7


def tree_with_a_file(size: int) -> Tree:
    tree = Tree("b")
    tree.tops["b"] = Node("top", DIRECTORY, 0o755)
    content = Content.durable(pattern(1, 0, size), size)
    tree.tops["b"].children["f"] = Node("f", FILE, 0o644, mtime_ns=SYNCED_NS, content=content)
    return tree


def calls(*, changing: bool) -> list[Op]:
    """A name that the cut loses, then a change of the file whose fsync the cut interrupts."""
    write = Op(3, "write", {"h": 2, "at": 0, "bytes": 512, "seed": SEED}, ended=True)
    return [
        Op(1, "mkfifo", {"path": "b/n", "mode": 0o600}, ended=True),
        Op(2, "open", {"path": "b/f", "create": None}, ended=True),
        *([write] if changing else []),
        Op(4, "fsync", {"h": 2}),
    ]


def shown(data: bytes, mtime_ns: int) -> Shown:
    return {
        "b": Found(DIRECTORY, 0o755, 1, 2, 0, {}, b""),
        "b/f": Found(FILE, 0o644, 2, 1, mtime_ns, {}, data),
    }


def changed(size: int) -> bytes:
    return pattern(SEED, 0, 512) + pattern(1, 0, size)[512:]


def test_bytes_that_came_through_before_their_journal_tell_their_time() -> None:
    matcher = Matcher(tree_with_a_file(LARGE_BYTES), calls(changing=True), BUFFERED_BYTES_MAX)
    found = matcher.match(shown(changed(LARGE_BYTES), SYNCED_NS + 5), set())
    assert found.find("b/f").mtime_ns == SYNCED_NS + 5
    assert matcher.lost_calls == 4


@pytest.mark.parametrize(
    ("size", "changing", "mtime_ns"),
    [
        pytest.param(LARGE_BYTES, True, SYNCED_NS - 5, id="an earlier time"),
        pytest.param(LARGE_BYTES, False, SYNCED_NS + 5, id="nobody changed it"),
        pytest.param(BUFFERED_BYTES_MAX, True, SYNCED_NS + 5, id="its bytes are in the journal"),
    ],
)
def test_any_other_time_is_a_loss(size: int, changing: bool, mtime_ns: int) -> None:
    matcher = Matcher(tree_with_a_file(size), calls(changing=changing), BUFFERED_BYTES_MAX)
    with pytest.raises(LostError, match=f"mtime {mtime_ns}, not {SYNCED_NS}"):
        matcher.match(shown(pattern(1, 0, size), mtime_ns), set())
