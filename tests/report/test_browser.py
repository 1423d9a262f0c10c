"""The page in a real browser: quiet, readable in light and dark, and no wider than its window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.browser import PROGRAM, Browser

pytestmark = [pytest.mark.program(PROGRAM), pytest.mark.unmeasured]

CONTRAST_MIN = 4.5
"""WCAG 2.2, 1.4.3, for text of ordinary size."""

CONTRASTS = Path(__file__).with_name("contrasts.js").read_text(encoding="utf-8")

GRAPHICS = """
[...document.querySelectorAll(".swatch, .track > span, .chart.wide .tip path, .chart text")]
  .filter((e) => e.checkVisibility())
  .map((e) => e.closest("svg") ? getComputedStyle(e).fill : getComputedStyle(e).backgroundColor)
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 800, 1600])
def test_the_page_is_quiet_and_fits(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.look(width, scheme=scheme)
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    widths = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths == [width, width]
    shown = browser.evaluate(
        "[...document.querySelectorAll('.chart svg')].filter((e) => e.checkVisibility()).length"
    )
    assert shown == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_readable(browser: Browser, page: Path, scheme: str) -> None:
    browser.look(1600, scheme=scheme)
    browser.open(page)
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    contrasts: list[Any] = browser.evaluate(CONTRASTS)
    assert len(contrasts) > 200
    assert [found for found in contrasts if found[0] < CONTRAST_MIN] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_colour_of_the_charts_was_forgotten(browser: Browser, page: Path, scheme: str) -> None:
    browser.look(1600, scheme=scheme)
    browser.open(page)
    colours = set(browser.evaluate(GRAPHICS))
    assert len(colours) >= 4
    assert not [colour for colour in colours if colour.startswith("rgb(1, 1, ")]


def test_chart_text_is_no_smaller_than_a_reader_can_take(browser: Browser, page: Path) -> None:
    for width in (360, 520, 521, 800, 900, 901, 1600):
        browser.look(width, scheme="light")
        browser.open(page)
        smallest = browser.evaluate(
            "Math.min(...[...document.querySelectorAll('.chart text')]"
            ".filter((e) => e.checkVisibility()).map((e) => e.getBoundingClientRect().height))"
        )
        assert smallest >= 9, f"{smallest} px at a width of {width}"


def test_a_table_sorts_by_the_column_that_is_clicked(browser: Browser, page: Path) -> None:
    browser.look(1600, scheme="light")
    browser.open(page)

    def column(number: int) -> list[str]:
        found: list[str] = browser.evaluate(
            "[...document.querySelector('.sortable').tBodies[0].rows]"
            f".map((row) => row.cells[{number}].dataset.value || row.cells[{number}].textContent)"
        )
        return found

    def click(number: int) -> str | None:
        sort: str | None = browser.evaluate(
            f"(() => {{ const head = document.querySelectorAll('.sortable thead th')[{number}];"
            "head.querySelector('button').click(); return head.getAttribute('aria-sort'); })()"
        )
        return sort

    names = column(0)
    assert click(5) == "descending"
    sizes = [int(value) for value in column(5)]
    assert sizes == sorted(sizes, reverse=True)
    assert click(5) == "ascending"
    assert [int(value) for value in column(5)] == sorted(sizes)
    assert click(0) == "ascending"
    assert column(0) == names
    assert browser.evaluate("document.querySelectorAll('[aria-sort]').length") == 1
    assert browser.complaints() == []


def test_times_are_the_readers_own(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setTimezoneOverride", timezoneId="Asia/Tokyo")
    browser.look(1600, scheme="light")
    browser.open(page)
    shown, said = browser.evaluate(
        "(() => { const e = document.querySelector('.made time');"
        "return [[e.textContent.includes(String(new Date(e.dateTime).getMinutes())),"
        "document.querySelector('.zone').textContent], e.title] })()"
    )
    assert shown == [True, "(Asia/Tokyo)"]
    assert said.endswith("Z")
    browser.call("Emulation.setTimezoneOverride", timezoneId="")


def test_a_script_that_got_into_the_page_would_not_run(browser: Browser, page: Path) -> None:
    """The page's policy is the second wall, behind escaping."""
    attacked = page.with_name("attacked.html")
    text = page.read_text(encoding="utf-8")
    attack = (
        "<script>document.title = 'taken'</script><img src='x' onerror=\"document.title='taken'\">"
    )
    attacked.write_text(text.replace("<main>", "<main>" + attack), encoding="utf-8")
    browser.look(1600, scheme="light")
    browser.open(attacked)
    assert browser.evaluate("document.title").endswith("dedupfs report")
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


def test_paper_gets_all_of_every_table_in_black_on_white(browser: Browser, page: Path) -> None:
    browser.look(800, scheme="dark", media="print")
    browser.open(page)
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(255, 255, 255)",
        "rgba(0, 0, 0, 0)",
    )
    assert browser.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert browser.evaluate(
        "[...document.querySelectorAll('.scroll')].every((e) => e.scrollHeight <= e.clientHeight)"
    )
    pdf = browser.call("Page.printToPDF", printBackground=False)["data"]
    assert pdf.startswith("JVBERi")  # %PDF-
