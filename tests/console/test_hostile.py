"""The console in a real browser: what strangers have stored, and what is large."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.console import scene
from tests.console.test_port import read
from tests.console.viewing import READY, base, check_accessibility, show
from tests.support.admin import AdminServer
from tests.support.browser import Browser, Tab
from tests.support.waiting import wait_for

HOSTILE = {
    "overview": "",
    "workflows": "workflows",
    "filtered": "workflows?" + urlencode({"definition": scene.SCRIPT, "reference": scene.TURNED}),
    **{
        tab: "workflow?" + urlencode({"id": scene.LONGEST_ID, "tab": tab})
        for tab in ("graph", "timeline", "data", "errors", "subscriptions", "commands", "tree")
    },
    "errors": "errors",
    "events": "events?" + urlencode({"event": scene.SCRIPT}),
    "queue": "queues?queue=hostile",
    "locks": "locks",
    "address": "workflow?" + urlencode({"id": scene.SCRIPT, "tab": scene.SCRIPT}),
    "namespace": "workflows?" + urlencode({"namespace": scene.SCRIPT}),
}


@pytest.mark.parametrize("page", HOSTILE)
def test_hostile_data_is_text(tab: Tab, shop: AdminServer, page: str) -> None:
    tab.open(base(shop) + HOSTILE[page])
    tab.wait(READY)
    assert harm(tab, shop) == set()
    if page in ("graph", "data", "errors", "locks", "queue"):
        assert "<script>" in tab.text() or "<b>xxx" in tab.text()
    tab.resize(390, 800)
    assert tab.run("document.documentElement.scrollWidth") <= 390
    check_accessibility(tab)


def harm(tab: Tab, shop: AdminServer) -> set[str]:
    """What strangers have brought about on the page with what they have stored; nothing: all of it
    is only text, and shows itself as what it is."""
    found = {
        "ran": "document.title === 'harmed'",
        # Only the page's own elements are there.
        "scripts": "[...document.scripts].some(s => !s.src.startsWith(location.origin))",
        "elements": "document.querySelector('img, iframe, object, body b, body style')",
        "listeners": "[...document.querySelectorAll('*')].some("
        "e => [...e.attributes].some(a => a.name.startsWith('on')))",
        "links": f"[...document.links].some(a => !a.href.startsWith({json.dumps(base(shop))}))",
        # Nothing turns around what stands beside it, nor is invisible; also not in what is only
        # read out, or shown when one points at it.
        "turned": "[document.title, document.body?.textContent, ...[...document.querySelectorAll("
        "'[title], [aria-label]')].flatMap(e => [e.title, e.ariaLabel])].some("
        r"t => /[\u202a-\u202e\u2066-\u2069\u200b]/.test(t ?? ''))",
    }
    return {name for name, condition in found.items() if tab.run(f"!!({condition})")} | (
        {"problems"} if tab.problems else set()
    )


def leads_to_it(tab: Tab) -> bool:
    """Whether the link to what has a hostile id leads to just that."""
    ids = tab.run(
        "[...document.querySelectorAll('td a')].map(a => new URL(a.href))"
        ".filter(u => u.pathname.endsWith('/workflow')).map(u => u.searchParams.get('id'))"
    )
    return scene.LONGEST_ID in ids


@pytest.mark.parametrize("page", ["workflows", "errors", "events"])
def test_links_lead_to_what_they_name(tab: Tab, shop: AdminServer, page: str) -> None:
    show(tab, shop, page)
    assert leads_to_it(tab)


# ----- the tests above can fail -----

_THEIRS = 'export const theirs = (text, properties) => h("bdi", properties, text ?? "");'
_INNER = """export const theirs = (text, properties) => {
    const element = h("bdi", properties); element.innerHTML = text; return element; };"""
_APPEND = "element.append(child instanceof Node ? child : document.createTextNode(clean(child)));"
_INSERT = """if (child instanceof Node) element.append(child);
    else element.insertAdjacentHTML("beforeend", child);"""
_SET = 'element.setAttribute(name, value === true ? "" : value);'
_LISTEN = _SET + ' if (name === "class") element.setAttribute("onclick", String(children[0]));'
_QUERY = "const text = query.toString();"
_DECODED = "const text = decodeURIComponent(query.toString());"

# A part of one of the console's own files, what stands there instead, the page on which it is seen,
# and as what: with the Content-Security-Policy, and without it.
FAULTS = {
    "all text is markup": ("dom.js", _APPEND, _INSERT, "locks", "problems", "elements"),
    "one cell is markup": ("dom.js", _THEIRS, _INNER, "graph", "problems", "ran"),
    "text turns around": (
        "dom.js", "String(text).replace(UNSEEN,", "String(text).replace(/$^/,", "locks",
        "turned", None,
    ),
    "a tooltip turns around": (
        "dom.js", 'title: clean(text ?? "")', "title: text", "events", "turned", None,
    ),
    "a step's tooltip turns around": (
        "graph.js", "title: clean(`${nameOf(pointer)}: ${state}`)",
        "title: `${nameOf(pointer)}: ${state}`", "graph", "turned", None,
    ),
    "the title turns around": (
        "main.js", "document.title = `${clean(text)} ", "document.title = `${text} ", "graph",
        "turned", None,
    ),
    "a listener is data": ("dom.js", _SET, _LISTEN, "locks", "problems", "listeners"),
    "an address has no escapes": ("dom.js", _QUERY, _DECODED, "workflows", "wrong link", None),
    "an address is somebody else's": (
        "dom.js", "return `./${page}", "return `//evil.example/${page}", "locks", "links", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(browser: Browser, shop: AdminServer, fault: str) -> None:
    file, right, wrong, page, protected, unprotected = FAULTS[fault]
    source = (scene.ROOT / "console/wfe_persistence_console/static" / file).read_text()
    assert source.count(right) == 1, "the file has changed: plant the fault anew"
    for policy, seen in ((True, protected), (False, unprotected)):
        if seen is None:
            continue  # the policy has no part in it
        tab = browser.tab()
        tab.call("Page.setBypassCSP", enabled=not policy)
        tab.replace(f"static/{file}", source.replace(right, wrong))
        tab.open(base(shop) + HOSTILE[page])
        if seen == "wrong link":
            tab.wait(READY)
            assert not leads_to_it(tab)
        else:
            wait_for(lambda tab=tab, seen=seen: seen in harm(tab, shop))  # type: ignore[misc]
        tab.close()


def test_a_hostile_document_can_be_unfolded(tab: Tab, shop: AdminServer) -> None:
    tab.open(base(shop) + HOSTILE["data"])
    tab.wait(READY)
    for _ in range(6):
        tab.run(
            "document.querySelectorAll('details:not([open]) > summary').forEach(s => s.click())"
        )
        tab.run("new Promise(resolve => setTimeout(resolve, 30))")
    text = tab.text(".document")
    assert "__proto__" in text
    assert text.count("<script>") >= 3
    assert "\\u202e" in text
    tab.open(base(shop) + HOSTILE["graph"])
    tab.wait(READY)
    tab.click(".node")
    tab.wait("document.querySelector('dialog')?.innerText.includes('Outcome')")
    assert not tab.run("document.title === 'harmed'")


def test_a_document_of_a_megabyte(tab: Tab, shop: AdminServer) -> None:
    show(tab, shop, "workflow?id=heavy&tab=data")
    assert len(read(shop, "workflow", id="heavy")["workflow"]["data"]) > 1_000_000
    elements = "document.querySelectorAll('*').length"
    assert tab.run(elements) < 500, "only what is unfolded is drawn"
    assert "all 300002 characters" in tab.text()
    tab.run(
        "[...document.querySelectorAll('summary')].find(s => s.innerText.includes('25000')).click()"
    )
    tab.wait("document.body.innerText.includes('24900 more')")
    assert tab.run(elements) < 1500
    for _ in range(95):
        if not tab.run(
            "(() => { const s = [...document.querySelectorAll('details:not([open]) > summary')].find(s => s.innerText.includes('[ 1 item ]')); s?.click(); return !!s; })()"
        ):
            break
        tab.run("new Promise(resolve => setTimeout(resolve, 10))")
    assert '"bottom"' in tab.text(".document")


def test_the_tree_of_json_is_what_was_stored(tab: Tab, shop: AdminServer) -> None:
    """The console's own parser against the browser's, with what can be compared."""
    show(tab, shop, "")
    values: list[Any] = [
        None, True, False, 0, -1.5, 1e300, "", "\\\"\n\u2028\ud83d\ude00</script>", [], {}, [[]],
        {"": {"a": [1, {"b": None}]}}, ["x" * 10_000], scene.SCRIPT, {"__proto__": 1},
    ]  # fmt: skip
    compare = """(async texts => {
        const { parse } = await import(new URL("static/json.js", location.href));
        const back = node => node.items === undefined ? JSON.parse(node.text)
            : node.kind === "array" ? node.items.map(([, one]) => back(one))
            : Object.fromEntries(node.items.map(([key, one]) => [JSON.parse(key), back(one)]));
        return texts.map(text => JSON.stringify(back(parse(text))) === JSON.stringify(JSON.parse(text)));
    })"""
    texts = [json.dumps(value) for value in values] + [json.dumps(values, indent=3)]
    assert tab.run(f"{compare}({json.dumps(texts)})") == [True] * len(texts)
    broken = ["", "{", "[1,", '{"a" 1}', "[1 2]", "nul", "1 2", "'x'", "{1:2}"]
    refuse = """(async texts => {
        const { parse } = await import(new URL("static/json.js", location.href));
        return texts.filter(text => { try { parse(text); return true; } catch { return false; } });
    })"""
    assert tab.run(f"{refuse}({json.dumps(broken)})") == []


# ----- large -----


def test_ten_thousand_steps(tab: Tab, shop: AdminServer) -> None:
    show(tab, shop, "workflow?id=batch-10000")
    assert "Graph (10,000)" in tab.text(".tabs")
    nodes = "document.querySelectorAll('.node').length"
    assert 0 < tab.run(nodes) < 200, "only what is in sight is drawn"
    tab.run(
        "(() => { const g = document.querySelector('.graph'); g.scrollTop = g.scrollHeight; })()"
    )
    tab.wait("document.querySelector('.graph').innerText.includes('item 399.')")
    assert tab.run(nodes) < 200
    tab.run("document.querySelector('.graph').focus()")
    tab.press("Home")
    tab.wait("document.activeElement.innerText.includes('item 0.0')")

    tab.click("#tab-timeline")
    rows = "document.querySelectorAll('.timeline .rows .row').length"
    tab.wait(f"{rows} > 5")
    assert tab.run(rows) < 60
    tab.run("document.querySelector('.timeline').focus()")
    tab.press("End", "Enter")
    tab.wait("document.querySelector('dialog h2')?.innerText === 'item 399.24'")
    tab.wait("document.querySelector('dialog').innerText.includes('Outcome')")
    assert "9999" in tab.text("dialog")
    assert tab.run("document.querySelector('.timeline').getAttribute('aria-rowcount')") == "10001"


def test_odd_graphs_have_a_layout(tab: Tab, shop: AdminServer) -> None:
    """Rings, strangers, the wrong order, and a chain that no recursion survives."""
    show(tab, shop, "")
    lay = """(async make => {
        const { layout } = await import(new URL("static/layout.js", location.href));
        const { nodes, levels } = layout(make());
        const places = new Set(nodes.map(n => `${n.level} ${n.column}`));
        return [nodes.length, places.size, levels.flat().length, nodes.filter(n => n.level < 0).length, levels.length];
    })"""
    cases = {
        "() => []": 0,
        "() => [{id: 'a', predecessor: 'a'}]": 1,
        "() => [{id: 'a', predecessor: 'b'}, {id: 'b', predecessor: 'a'}]": 2,
        "() => [{id: 'a', predecessor: 'none', children: ['none', 'a', 'b']}, {id: 'b'}]": 2,
        "() => [{id: 'c', predecessor: 'b'}, {id: 'b', predecessor: 'a'}, {id: 'a'}]": 3,
        "() => [{id: '__proto__'}, {id: 'constructor', predecessor: '__proto__'}]": 2,
        "() => Array.from({length: 50000}, (_, n) => ({id: `${n}`, predecessor: n ? `${n - 1}` : undefined}))": 50_000,
        "() => Array.from({length: 50000}, (_, n) => ({id: `${n}`, predecessor: `${n + 1}`}))": 50_000,
        "() => Array.from({length: 50000}, (_, n) => ({id: `${n}`, predecessor: n ? '0' : undefined}))": 50_000,
    }  # fmt: skip
    for case, size in cases.items():
        nodes, places, in_levels, without, _ = tab.run(f"{lay}({case})")
        assert (nodes, places, in_levels, without) == (size, size, size, 0), case
