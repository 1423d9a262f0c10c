"""Waits are taken in place only while they were short lately."""

from dedupfs.store.patience import SHORT_NS, Patience


def test_nothing_is_known_at_first_and_one_short_wait_is_enough() -> None:
    patience = Patience()
    assert not patience.is_short
    patience.note(SHORT_NS // 2)
    assert patience.is_short


def test_a_long_wait_is_enough_to_stop_and_short_ones_make_up_for_it() -> None:
    patience = Patience()
    for _ in range(1000):
        patience.note(0)
    patience.note(60_000_000_000)
    is_short = [patience.is_short]
    while not is_short[-1]:
        patience.note(SHORT_NS // 5)
        is_short.append(patience.is_short)
    assert 2 <= len(is_short) <= 20


def test_now_and_then_a_wait_that_is_not_quite_short_changes_nothing() -> None:
    patience = Patience()
    for count in range(1000):
        patience.note(2 * SHORT_NS if count % 8 == 7 else SHORT_NS // 5)
    assert patience.is_short
