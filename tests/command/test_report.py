# SPDX-License-Identifier: Apache-2.0
"""The page of `tapster report`, opened in a headless Chromium."""

import json
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lab import shell
from lab.browser import Browser
from tapster.cli import report
from tapster.model import HistoryEntry, HistoryEvent, Kind

NOW = 1_700_000_000.0
DAY = 86400.0
FRAMES = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
KINDS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 400)]


def history(leases: int, names: int) -> tuple[list[HistoryEntry], list[HistoryEvent]]:
    """Make leases that follow one another under each name, and some events."""
    random = Random(1)
    turns = leases // names
    entries = []
    for number in range(leases):
        name, turn = number % names, number // names
        created = NOW - DAY + turn * DAY / turns
        released = None if turn == turns - 1 else created + DAY / turns * 0.8
        entries.append(
            HistoryEntry(
                f"vnet{name}",
                f"{random.getrandbits(64):016x}",
                f"vm-{random.randrange(40)}",
                Kind.TAP,
                f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}",
                number,
                "",
                created,
                released,
                released and released + DAY / turns * 0.1,
            )
        )
    entries.sort(key=lambda entry: -entry.created)
    events = [
        HistoryEvent(
            entry.created + 1,
            "moved",
            entry.lease,
            entry.name,
            entry.owner,
            None,
            "off",
        )
        for entry in entries[::50]
    ]
    return entries, events


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(report.write(*history(200, 20), until=NOW), "utf-8")
    return path


def opened(
    browser: Browser, page: Path, scheme: str = "light", width: int = 1280
) -> None:
    browser.open(page, width=width, height=900, scheme=scheme)
    browser.run(FRAMES)


def table(browser: Browser) -> list[list[str]]:
    """Return the cells of the page's table."""
    rows: list[list[str]] = browser.run(
        "[...document.querySelectorAll('#rows tr')].map("
        "row => [...row.cells].map(cell => cell.textContent))"
    )
    return rows


def test_the_table_has_every_lease(browser: Browser, page: Path) -> None:
    opened(browser, page)
    entries, _ = history(200, 20)
    rows = table(browser)
    assert [row[7] for row in rows] == [entry.lease for entry in entries]
    assert [row[1] for row in rows] == [entry.owner for entry in entries]


def test_search_narrows_chart_and_table(browser: Browser, page: Path) -> None:
    opened(browser, page)
    browser.run("document.getElementById('search').focus()")
    for letter in "vnet7":
        browser.press(letter)
    assert {row[0] for row in table(browser)} == {"vnet7"}
    assert browser.run("rows.length") == 1
    assert "10 of 200 leases, 1 names" in browser.run(
        "document.getElementById('summary').textContent"
    )


def test_the_keyboard_chooses_leases_and_zooms(browser: Browser, page: Path) -> None:
    opened(browser, page)
    browser.run("document.getElementById('chart').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        browser.press(key)
    chosen = browser.run("[chosen.name, chosen.lease]")
    details = browser.run("document.getElementById('details').innerText")
    assert chosen[0] == "vnet1"
    assert chosen[1] in details
    whole = browser.run("last - first")
    browser.press("+")
    assert browser.run("last - first") == pytest.approx(whole / 2)
    browser.press("Home")
    assert browser.run("last - first") == pytest.approx(whole)


def test_a_click_chooses_the_bar_under_it(browser: Browser, page: Path) -> None:
    opened(browser, page)
    x, y = browser.run(
        "(() => { const box = at('canvas').getBoundingClientRect();"
        "const width = document.getElementById('chart').clientWidth;"
        "const lease = rows[3][1][4], names = Math.min(width * .35, 150);"
        "return [box.left + names + (lease.from + 60 - first) * "
        "(width - names - 8) / (last - first), box.top + AXIS + 3.5 * ROW]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left",
            clickCount=1,
        )
    assert browser.run("chosen === rows[3][1][4]")


@pytest.mark.parametrize(("scheme", "width"), KINDS)
def test_nothing_is_cut_off_and_the_chart_has_colours(
    browser: Browser, page: Path, scheme: str, width: int
) -> None:
    opened(browser, page, scheme, width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    colours = browser.run(
        "(() => { const canvas = document.getElementById('canvas');"
        "const data = canvas.getContext('2d').getImageData("
        "0, 0, canvas.width, canvas.height).data, seen = new Set();"
        "for (let i = 0; i < data.length; i += 4)"
        "seen.add(data[i] + ',' + data[i + 1] + ',' + data[i + 2]);"
        "return seen.size; })()"
    )
    assert colours > 20


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), KINDS)
def test_the_page_is_accessible(
    browser: Browser, page: Path, scheme: str, width: int
) -> None:
    spec = find_spec("axe_core_python")
    assert spec is not None
    assert spec.submodule_search_locations
    script = Path(spec.submodule_search_locations[0], "axe.min.js")
    opened(browser, page, scheme, width)
    browser.run(script.read_text("utf-8"))
    found: list[dict[str, Any]] = browser.run("axe.run().then(done => done.violations)")
    assert [(one["id"], one["help"]) for one in found] == []


@pytest.mark.slow
def test_ten_thousand_leases_are_small_and_quick(
    browser: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.write_text(report.write(*history(10_000, 250), until=NOW), "utf-8")
    assert page.stat().st_size < 1_000_000
    opened(browser, page)
    # Since the navigation began, with all frames drawn.
    assert browser.run("performance.now()") < 2000


def test_the_page_needs_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert " src=" not in text


def test_no_text_of_a_lease_can_become_part_of_the_page(
    browser: Browser, tmp_path: Path
) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    entries, events = history(10, 2)
    entries = [entry._replace(owner=evil) for entry in entries]
    page = tmp_path / "report.html"
    page.write_text(report.write(entries, events, until=NOW), "utf-8")
    opened(browser, page)
    assert table(browser)[0][1] == evil
    assert browser.run("document.querySelectorAll('img').length") == 0


def test_an_empty_history_is_a_page_too(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(report.write([], []), "utf-8")
    opened(browser, page)
    assert table(browser) == []


@pytest.mark.kernel
@pytest.mark.usefixtures("world")
def test_the_verb_writes_what_the_history_has(ledger: Path, tmp_path: Path) -> None:
    def tapster(*arguments: str) -> str:
        return subprocess.run(
            [shell.TAPSTER, "--ledger", str(ledger), *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    tapster("add", "--bridge", "br0", "--owner", "web")
    tapster("rm", "--owner", "web")
    tapster("report", "-o", str(tmp_path / "names.html"))
    printed = tapster("report", "--since", "1h")
    for page in ((tmp_path / "names.html").read_text("utf-8"), printed):
        _, _, rest = page.partition('id="data">')
        content = json.loads(rest.partition("</script>")[0])
        assert content["names"] == ["vnet0"]
        assert content["owners"] == ["web"]
        assert len(content["leases"]) == 1
