"""One store and its page for all tests of this directory: nobody changes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dedupfs.cli.output import size
from dedupfs.maintenance.check import check
from dedupfs.maintenance.overview import Overview
from dedupfs.report.page import render
from dedupfs.store import Store
from tests.report.browser import Browser, running
from tests.report.sample import make_store, overview_of


@pytest.fixture(scope="session")
def overview(tmp_path_factory: pytest.TempPathFactory) -> Overview:
    path = make_store(tmp_path_factory.mktemp("report"))
    found = overview_of(path)
    with Store.open(path) as store:
        assert check(store).ok
    return found


@pytest.fixture(scope="session")
def html(overview: Overview) -> str:
    return render(overview, "1.2.3", size)


@pytest.fixture(scope="session")
def page(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running(tmp_path_factory.mktemp("browser")) as found:
        yield found
