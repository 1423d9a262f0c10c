"""The page as text: valid, complete in itself, and nothing in it but what we mean."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dedupfs.cli.output import size
from dedupfs.maintenance.overview import Growth, Overview
from dedupfs.maintenance.sharing import Gap
from dedupfs.report.page import percent, render, when
from dedupfs.store import Store
from tests.maintenance.samples import SMALL
from tests.report.sample import HOSTILE, overview_of

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Reader(HTMLParser):
    """Refuses what is not nested well; collects tags, ids and attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"an attribute twice in {tag}: {attrs}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> of nothing at {self.getpos()}"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def attributes(self, name: str) -> Iterator[str]:
        return (found[name] or "" for _, found in self.tags if name in found)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def reader(html: str) -> Reader:
    return read(html)


def test_every_id_is_there_once_and_every_reference_leads_to_one(html: str, reader: Reader) -> None:
    ids = list(reader.attributes("id"))
    assert len(ids) == len(set(ids))
    named = {name for label in reader.attributes("aria-labelledby") for name in label.split()}
    used = set(re.findall(r"url\(#([^)]*)\)", html))
    linked = {found.removeprefix("#") for found in reader.attributes("href") if found[0] == "#"}
    assert named | used | linked <= set(ids)
    assert used


def test_the_page_asks_nobody_for_anything(html: str, reader: Reader) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)
    assert {tag for tag, _ in reader.tags} & {"iframe", "object", "embed", "img", "form"} == set()
    assert not list(reader.attributes("src"))
    assert {found for found in reader.attributes("href") if found[0] != "#"} == {"data:,"}


def test_names_from_the_store_cannot_break_out(html: str, reader: Reader) -> None:
    scripts = [tag for tag, _ in reader.tags if tag == "script"]
    assert len(scripts) == 1
    assert not [name for _, found in reader.tags for name in found if name.startswith("on")]
    assert "\x00" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    text = "".join(reader.text)
    assert "</script><script>alert(1)</script>" in text
    assert "{{ 7*7 }}" in text
    assert "<td><b>bold" in text
    assert "caf\u00e9 \u65e5\u672c" in text


def test_hostile_texts_are_harmless_wherever_they_are(overview: Overview) -> None:
    space = dataclasses.replace(
        overview.spaces[0], name=HOSTILE, tags=((HOSTILE, HOSTILE),), mounted_on=HOSTILE
    )
    point = dataclasses.replace(overview.growth[0], name=HOSTILE)
    names = (HOSTILE, *overview.matrix.names[1:])
    hostile = dataclasses.replace(
        overview,
        store_path=HOSTILE,
        spaces=[space, dataclasses.replace(space, kind="view", base=HOSTILE)],
        growth=[point, *overview.growth[1:]],
        matrix=dataclasses.replace(overview.matrix, names=names),
        directories_of=HOSTILE,
        gaps=[Gap(HOSTILE, (HOSTILE,))],
        gap_count=1,
    )
    reader = read(render(hostile, HOSTILE, size))
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in reader.tags}


@pytest.mark.program("tidy")
def test_tidy_finds_nothing_to_complain_about(page: Path) -> None:
    command = ["tidy", "-quiet", "-errors", "--drop-empty-elements", "no", str(page)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_the_page_says_what_it_is_of(overview: Overview, reader: Reader) -> None:
    text = "".join(reader.text)
    assert overview.store_path in text
    assert "1.2.3" in text
    assert when(overview.made_ns) in text
    for space in overview.spaces:
        assert space.name in text
        assert size(space.exclusive_bytes) in text
    for prune in overview.prunes:
        assert prune.rule in text


def test_every_chart_has_a_text_for_those_who_cannot_see_it(reader: Reader) -> None:
    charts = [found for tag, found in reader.tags if tag == "svg"]
    assert len(charts) == 4 * 3
    for found in charts:
        assert found["role"] == "img"
        assert len(found["aria-label"] or "") > 30


def test_an_empty_store_is_a_page_that_says_so(tmp_path: Path) -> None:
    Store.create(tmp_path / "store", **SMALL).close()
    text = render(overview_of(tmp_path / "store"), "1", size)
    reader = read(text)
    assert "This store is empty" in "".join(reader.text)
    assert "svg" not in {tag for tag, _ in reader.tags}


def test_only_views_are_a_page_too(overview: Overview) -> None:
    views = [space for space in overview.spaces if space.kind == "view"]
    alone = dataclasses.replace(overview, spaces=views, growth=[], prunes=[], directories=[])
    text = "".join(read(render(alone, "1", size)).text)
    assert "Views and mounts" in text
    assert "Space by snapshot" not in text


@pytest.mark.parametrize(("count", "time_ns"), [(1, 0), (2, -(1 << 63)), (300, (1 << 63) - 1)])
def test_any_time_and_any_number_of_snapshots_can_be_drawn(
    overview: Overview, count: int, time_ns: int
) -> None:
    points = [Growth(f"s{n}", time_ns, 1 << 60, n, n << 40 if time_ns else 0) for n in range(count)]
    space = dataclasses.replace(overview.spaces[0], created_ns=time_ns)
    read(render(dataclasses.replace(overview, growth=points, spaces=[space]), "1", size))


def test_what_could_not_be_counted_is_told_first(overview: Overview) -> None:
    gaps = [Gap(f"record {n}", ("snapshot a",)) for n in range(30)]
    text = "".join(
        read(render(dataclasses.replace(overview, gaps=gaps, gap_count=31), "1", size)).text
    )
    assert text.index("Not everything could be counted") < text.index("Plain copies would take")
    assert "and 11 more" in text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 0, "0 %"),
        (0, 9, "0 %"),
        (1, 10_000, "<0.1 %"),
        (1, 8, "12.5 %"),
        (9999, 10_000, "100 %"),
        (3, 2, "150 %"),
    ],
)
def test_shares_are_written_for_people(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text
