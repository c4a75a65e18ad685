"""The console in a real browser: every page, light and dark, wide and narrow, and the keyboard."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from tests.console import pictures, scene
from tests.console.pages import PAGES, SHOWN
from tests.console.viewing import READY, base, check_accessibility, show
from tests.support.admin import AdminServer
from tests.support.browser import Browser, Tab

# ----- every page -----


@pytest.mark.parametrize("page", PAGES)
def test_every_page(tab: Tab, shop: AdminServer, page: str) -> None:
    show(tab, shop, PAGES[page])
    for expected in SHOWN[page]:
        tab.wait(f"document.body.innerText.includes({json.dumps(expected)})")
    assert tab.run("document.querySelectorAll('h1').length") == 1
    # Nothing is asked of anybody else, and nothing tells where one is.
    assert {url for url in tab.requested if not url.startswith(base(shop))} <= {"about:blank"}


@pytest.mark.parametrize("view", pictures.VIEWS)
def test_accessible_and_as_pictured_in_any_colours_and_width(
    browser: Browser, shop: AdminServer, tmp_path: Path, view: str
) -> None:
    taken = {}
    with pictures.camera(browser, view) as camera:
        for name in PAGES:
            pictures.see(camera.tab, shop, name)
            check_accessibility(camera.tab)
            assert camera.tab.run("document.documentElement.scrollWidth") <= camera.width, name
            taken[name] = camera.take()
    found = broken(differences_of(browser, view, taken))
    for name in found:
        (tmp_path / f"{name}.png").write_bytes(taken[name])
    assert not found, (
        f"these differ from {pictures.SEEN / view}; as they are now, they are in {tmp_path}; if that "
        "is right: python -m tests.console.pictures"
    )


STYLE = (scene.ROOT / "console/wfe_persistence_console/static/style.css").read_text()
BREAKAGES = {
    "no style sheet": (None, "locks"),
    "cards that overlap": (
        STYLE.replace("gap: .9rem; margin-bottom: .9rem; }", "gap: .9rem; margin-bottom: -6rem; }"),
        "overview",
    ),
    "a column over its neighbour": (STYLE + "td { position: relative; left: 6rem; }", "commands"),
    "filters below each other": (
        STYLE.replace(".filters { display: flex;", ".filters { display: block;"), "locks"
    ),
    "steps on top of each other": (STYLE + ".node { left: 16px !important; }", "workflow"),
    "the header over the page": (STYLE + "main { margin-top: -2rem; }", "locks"),
}  # fmt: skip


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_breakage_is_seen(browser: Browser, shop: AdminServer, breakage: str) -> None:
    style, name = BREAKAGES[breakage]
    assert style != STYLE, "the style sheet has changed: break it anew"
    with pictures.camera(browser, "light-1280") as camera:
        camera.tab.replace("static/style.css", style, "text/css")
        pictures.see(camera.tab, shop, name)
        taken = {name: camera.take()}
    assert broken(differences_of(browser, "light-1280", taken))


def differences_of(browser: Browser, view: str, taken: dict[str, bytes]) -> dict[str, float]:
    known = {name: (pictures.SEEN / view / f"{name}.png").read_bytes() for name in taken}
    return pictures.differences(browser, {name: (known[name], taken[name]) for name in taken})


def broken(found: dict[str, float]) -> dict[str, float]:
    return {name: part for name, part in found.items() if part > pictures.MOST_DIFFERENT}


def test_dialogs_are_accessible(tab: Tab, shop: AdminServer) -> None:
    show(tab, shop, PAGES["workflow"])
    for opens in (".node", ".actions button", ".actions button.danger"):
        tab.click(opens)
        tab.wait(
            "document.querySelector('dialog[open]') && !document.body.innerText.includes('Reading')"
        )
        check_accessibility(tab)
        tab.press("Escape")
        tab.wait("!document.querySelector('dialog')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_chosen_colours_win(browser: Browser, shop: AdminServer, dark: bool) -> None:
    tab = browser.tab(dark=dark)
    back = "getComputedStyle(document.body).backgroundColor"
    show(tab, shop, "locks")
    system = tab.run(back)
    seen = [system]
    for _ in range(2):
        tab.click("[aria-label^=Colours]")
        seen.append(tab.run(back))
    assert len(set(seen)) == 2
    show(tab, shop, "locks")
    assert tab.run(back) == seen[-1], "and are remembered"
    assert tab.problems == []
    tab.close()


# ----- what people do -----


def test_from_the_overview_to_what_is_stuck(tab: Tab, shop: AdminServer) -> None:
    show(tab, shop, "")
    tab.run("document.querySelector('.card a').click()")
    tab.wait("location.search === '?stuck=0' && document.querySelector('table')")
    tab.wait("document.body.innerText.includes('3 shown')")
    tab.run(
        "[...document.querySelectorAll('td a')].find(a => a.innerText === 'invoice-2026-2').click()"
    )
    tab.wait("document.querySelector('h1')?.innerText === 'invoice-2026-2'")
    tab.run("history.back()")
    tab.wait("document.body.innerText.includes('3 shown')")


def test_filters_are_in_the_address(tab: Tab, shop: AdminServer) -> None:
    show(tab, shop, "workflows")
    tab.click("#filter-definition")
    tab.type("mail")
    tab.press("Enter")
    tab.wait(
        "location.search === '?definition=mail' && document.body.innerText.includes('40 shown')"
    )
    tab.run(
        "(() => { const s = document.querySelector('#filter-status'); s.value = 'terminated';"
        "s.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    tab.wait("document.body.innerText.includes('4 shown')")
    address = tab.run("location.search")
    show(tab, shop, "workflows" + address)
    assert "4 shown" in tab.text(), "whoever is sent the link sees the same"
    tab.click(".heading button")
    tab.wait("document.body.innerText.includes('4 terminated')")


WHOLE = {
    "workflows": {
        "status": "runnable", "definition": "order", "version": "3", "reference": "customer-17",
        "name": "order", "event": "payment.confirmed", "key": "order-1042", "older": "3600",
        "younger": "604800", "errors": "86400", "order": "oldest",
    },
    "workflows?": {"ended": "604800", "stuck": "300", "root": "campaign", "older": "7200"},
    "events": {
        "event": "payment.failed", "key": "order-1042", "processed": "false", "order": "oldest",
    },
    "commands": {
        "command": "process_workflow", "data": "order-1042", "leased": "true", "worker": "worker-1",
    },
    "errors": {"workflow": "order-1042", "younger": "86400"},
    "locks": {"resource": "nightly", "owner": "cron"},
    "queues": {"queue": "mails", "state": "leased", "id": "mail-1"},
}  # fmt: skip


@pytest.mark.parametrize("page", WHOLE)
def test_an_address_can_be_sent_with_all_its_filters(
    tab: Tab, shop: AdminServer, page: str
) -> None:
    """The form shows what the address says, the server is asked for it, and back again."""
    expected = WHOLE[page]
    show(tab, shop, f"{page.rstrip('?')}?{urlencode(expected)}")
    assert not tab.text(".problem")
    shown = tab.run(
        "Object.fromEntries([...new FormData(document.querySelector('.filters'))].filter(([, v]) => v))"
    )
    kept = {"queue": "mails"} if page == "queues" else {}
    assert shown | kept == expected
    asked = [dict(parse_qsl(urlsplit(url).query)) for url in tab.requested if "/api/" in url]
    assert expected in asked
    tab.run("document.querySelector('.filters').requestSubmit()")
    tab.wait(READY)
    assert dict(parse_qsl(tab.run("location.search")[1:])) == expected


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("workflows?key=x", "needs event"),
        ("workflows?colour=red", "does not choose by it: colour"),
        ("workflows?status=complete&status=runnable", "only the first counts: status"),
        ("events?at=2026-01-01", "does not choose by it: at"),
        ("queues?state=dead", "does not choose by it: state"),
        ("storage?table=x", "does not choose by it: table"),
        ("workflow?id=order-1042&tab=pictures", "no such tab: pictures"),
        ("workflow?id=order-1042&name=x", "does not choose by it: name"),
    ],
)
def test_no_filter_is_ignored_in_silence(tab: Tab, shop: AdminServer, page: str, said: str) -> None:
    tab.open(base(shop) + page)
    tab.wait(f"{READY} && document.querySelector('.problem')")
    assert said in tab.text(".problem")


def test_pages_of_a_list(tab: Tab, shop: AdminServer) -> None:
    show(tab, shop, "workflows")
    first = tab.text("tbody")
    assert "50 shown" in tab.text()
    tab.click("a[rel=next]")
    tab.wait(
        "location.search.includes('cursor=') && document.querySelector('.pager .button')?.innerText === 'First page'"
    )
    tab.wait(READY)
    assert not set(tab.text("tbody").split()) & {w for w in first.split() if w.startswith("mail-")}


@pytest.mark.parametrize("by", ["order-1042", "invoice-2026-1"])
def test_open_by_id_or_name(tab: Tab, shop: AdminServer, by: str) -> None:
    show(tab, shop, "")
    tab.click("[name=find]")
    tab.type(by)
    tab.press("Enter")
    tab.wait(f"document.querySelector('h1')?.innerText === {json.dumps(by)}")


def test_a_step_shows_its_documents(tab: Tab, shop: AdminServer) -> None:
    show(tab, shop, PAGES["workflow"])
    tab.run(
        "[...document.querySelectorAll('.node')].find(n => n.innerText.includes('reserve')).click()"
    )
    tab.wait("document.querySelector('dialog')?.innerText.includes('Outcome')")
    text = tab.text("dialog")
    assert "A-17" in text
    assert "complete" in text
    assert "3.5 s" in text


def test_with_the_keyboard_alone(tab: Tab, shop: AdminServer) -> None:
    focused = "document.activeElement"
    show(tab, shop, PAGES["workflow"])
    tab.press("Tab")
    assert tab.run(f"{focused}.innerText") == "Skip to content"
    tab.press("Enter")
    assert tab.run(f"{focused}.id") == "main"
    for _ in range(12):
        tab.press("Tab")
        if tab.run(f"{focused}.getAttribute('role')") == "tab":
            break
    else:
        raise AssertionError("Tab does not lead to the tabs")
    tab.press("ArrowRight")
    assert tab.run(f"{focused}.innerText") == "Timeline"
    tab.press("Tab", "ArrowDown", "Enter")
    tab.wait("document.querySelector('dialog h2')?.innerText === 'reserve stock'")
    tab.press("Escape")
    tab.wait("!document.querySelector('dialog')")
    assert tab.run(f"{focused}.getAttribute('role')") == "grid", "the focus comes back"

    tab.run("document.querySelector('#tab-graph').focus()")
    tab.press("Enter", "Tab", "ArrowDown", "ArrowDown")
    assert "reserve" in tab.run(f"{focused}.innerText")
    tab.press("ArrowDown", "ArrowDown", "ArrowRight")
    assert "print label" in tab.run(f"{focused}.innerText")
    tab.press("Enter")
    tab.wait("document.querySelector('dialog h2')?.innerText === 'print label'")


# ----- the docs -----


def test_the_pictures_of_the_docs_can_be_taken_again(
    browser: Browser, shop: AdminServer, tmp_path: Path
) -> None:
    pictures.take_docs(browser, shop, tmp_path)
    docs = scene.ROOT / "docs"
    page = (docs / "console.md").read_text()
    for name in pictures.DOCS:
        new, old = (folder / f"console-{name}.png" for folder in (tmp_path, docs))
        # Width and height: the first of what a PNG says. (How long ago something was differs.)
        assert new.read_bytes()[:24] == old.read_bytes()[:24], "python -m tests.console.pictures"
        assert f"(console-{name}.png)" in page
