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
from tests.support.browser import Tab

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
    assert not tab.run("document.title === 'harmed'")
    # Only the page's own elements are there.
    assert tab.run(
        "[...document.querySelectorAll('script')].every(s => s.src.startsWith(location.origin))"
    )
    assert (
        tab.run("document.querySelectorAll('img, iframe, object, body b, body style').length") == 0
    )
    assert tab.run(
        "[...document.querySelectorAll('*')].every(e => ![...e.attributes].some(a => a.name.startsWith('on')))"
    )
    links = tab.run("[...document.querySelectorAll('a')].map(a => a.href)")
    assert all(link.startswith(base(shop)) for link in links)
    # Nothing turns around what stands beside it, nor is invisible.
    assert not tab.run(
        "/[\\u202a-\\u202e\\u2066-\\u2069\\u200b]/.test(document.body.textContent + document.title)"
    )
    if page in ("graph", "data", "errors", "locks", "queue"):
        assert "<script>" in tab.text() or "<b>xxx" in tab.text()
    tab.resize(390, 800)
    assert tab.run("document.documentElement.scrollWidth") <= 390
    check_accessibility(tab)


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
