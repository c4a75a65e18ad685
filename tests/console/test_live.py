"""The console in a real browser: changes, a server that is away, and logins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlencode

from tests.console.test_port import Secured
from tests.console.viewing import READY, base, check_accessibility, show
from tests.support.admin import AdminServer
from tests.support.browser import Browser, Tab, started
from wfe_persistence_client import ExecutionError, WorkflowInstance, WorkflowStatus, connect
from wfe_persistence_client.administration import EXPLANATIONS

# ----- live -----


async def _write(server: AdminServer, workflow: WorkflowInstance) -> None:
    async with connect(server.address) as store:
        await store.persist_workflow(workflow)


async def _new(server: AdminServer, name: str = "") -> WorkflowInstance:
    async with connect(server.address) as store:
        workflow = WorkflowInstance(
            name=name, workflow_definition_id="live", version=1, data={"n": 1}
        )
        workflow.id = await store.create_new_workflow(workflow)
        return await store.get_workflow_instance(workflow.id)


def test_changes_come_by_themselves(tab: Tab, shop: AdminServer) -> None:
    workflow = asyncio.run(_new(shop))
    page = urlencode({"id": workflow.id, "tab": "data"})
    show(tab, shop, f"workflow?{page}")
    tab.wait("document.querySelector('[data-on=yes]')")
    workflow.status = WorkflowStatus.SUSPENDED
    workflow.data = {"n": "something else"}
    asyncio.run(_write(shop, workflow))
    # Sooner than the page would ask by itself.
    tab.wait("document.body.innerText.includes('something else')", 10)
    assert "suspended" in tab.text(".facts")

    show(tab, shop, "workflows?definition=live")
    tab.wait("document.querySelector('[data-on=yes]')")
    other = asyncio.run(_new(shop, name="just-created"))
    tab.wait("document.body.innerText.includes('just-created')", 10)

    async def delete() -> None:
        async with connect(shop.address) as store:
            for one in (workflow, other):
                await store.delete_workflow(one.id)

    asyncio.run(delete())
    tab.wait("document.body.innerText.includes('No workflow matches')", 10)


def test_what_is_deleted_stays_on_the_page(tab: Tab, shop: AdminServer) -> None:
    workflow = asyncio.run(_new(shop, name="soon-gone"))
    show(tab, shop, f"workflow?{urlencode({'id': workflow.id})}")
    tab.wait("document.querySelector('[data-on=yes]')")
    for at, verb in ((1, "Suspend"), (2, "Resume"), (3, "Delete")):
        tab.run(
            f"[...document.querySelectorAll('.actions button')].find(b => b.innerText === {verb!r}).click()"
        )
        tab.wait("document.querySelector('dialog')")
        assert EXPLANATIONS[verb.lower()] in tab.text("dialog"), "as on the command line"
        # A click too many does nothing: the focus is on the way out.
        assert tab.run("document.activeElement.innerText") == "Cancel"
        tab.run("document.querySelector('dialog .danger').click()")
        if at < 3:
            tab.wait(
                f"!document.querySelector('dialog') && document.body.innerText.includes('{['suspended', 'runnable'][at - 1]}')"
            )
    tab.wait("location.pathname.endsWith('/workflows')")


def test_somebody_else_was_faster(tab: Tab, shop: AdminServer) -> None:
    workflow = asyncio.run(_new(shop))
    tab.open(base(shop))
    tab.wait(READY)
    tab.run("localStorage.setItem('wfe-live', 'no')")
    show(tab, shop, f"workflow?{urlencode({'id': workflow.id})}")
    asyncio.run(_write(shop, workflow))
    tab.click(".actions button")
    tab.wait("document.querySelector('dialog')")
    tab.run("document.querySelector('dialog .danger').click()")
    tab.wait("document.querySelector('dialog .problem')?.innerText.includes('revision')")
    check_accessibility(tab)

    async def stored() -> WorkflowStatus:
        async with connect(shop.address) as store:
            found = await store.get_workflow_instance(workflow.id)
            await store.delete_workflow(workflow.id)
            return found.status

    assert asyncio.run(stored()) is WorkflowStatus.RUNNABLE


def test_what_is_asked_about_one_page_is_not_answered_on_another(
    tab: Tab, shop: AdminServer
) -> None:
    """It would be done in the namespace of the other page."""
    workflow = asyncio.run(_new(shop))
    show(tab, shop, "workflows")
    address = urlencode({"id": workflow.id, "namespace": "default"})
    tab.run(f"document.querySelector('.brand').setAttribute('href', './workflow?{address}')")
    tab.click(".brand")
    tab.wait(READY)
    tab.click(".actions button")
    tab.wait("document.querySelector('dialog')")
    assert "in the namespace default" in tab.text("dialog")
    tab.run("history.back()")
    tab.wait("location.pathname.endsWith('/workflows')")
    tab.wait(READY)
    tab.wait("!document.querySelector('dialog')", 5)


# ----- a server that is away -----


def test_the_page_survives_a_restart(browser: Browser, tmp_path: Path, database_url: str) -> None:
    server = AdminServer(tmp_path / "log", "--db-url", database_url, "--console")
    tab = browser.tab()
    with server:
        workflow = asyncio.run(_new(server, name="before"))
        address = f"{server.admin[0]}:{server.admin[1]}"
        show(tab, server, "workflows")
        tab.wait("document.querySelector('[data-on=yes]')")
        assert server.stop() == 0
        tab.wait("document.querySelector('[data-on=no]')")
        assert "before" in tab.text("table"), "what was seen stays"
        # Another page, meanwhile.
        tab.run(
            "[...document.querySelectorAll('nav a')].find(a => a.innerText === 'Errors').click()"
        )
        tab.wait(
            "document.querySelector('.banner:not([hidden])')?.innerText.includes('trying again')"
        )
        again = AdminServer(
            tmp_path / "log", "--db-url", database_url, "--console", "--admin-listen", address
        )
        with again:
            tab.wait(
                "document.body.innerText.includes('No error is logged') && document.querySelector('.banner').hidden"
            )
            tab.run(
                "[...document.querySelectorAll('nav a')].find(a => a.innerText === 'Workflows').click()"
            )
            tab.wait("document.querySelector('[data-on=yes]')")

            async def log() -> None:
                async with connect(again.address) as store:
                    workflow.name = "after"
                    await store.persist_workflow(workflow)
                    await store.persist_errors([ExecutionError(workflow_id="x", message="new")])

            asyncio.run(log())
            tab.wait("document.querySelector('table').innerText.includes('after')", 15)
    assert tab.problems == []
    tab.close()


# ----- logins -----


def test_log_in_and_out(tmp_path: Path, database_url: str) -> None:
    secured = Secured(tmp_path, database_url)
    # The browser of a person would know the authority.
    arguments = ["--ignore-certificate-errors"]
    with secured.server as server, started(tmp_path / "profile", arguments) as browser:
        tab = browser.tab()
        tab.open(base(server) + "workflows")
        tab.wait("document.querySelector('dialog #token')")
        check_accessibility(tab)
        assert tab.run("document.activeElement.id") == "token"
        tab.type("wrong")
        tab.press("Enter")
        tab.wait("document.querySelector('#token-problem').innerText !== ''")
        tab.press("Escape")
        tab.wait("document.querySelector('dialog[open] #token')")
        tab.run(
            "document.querySelector('#token').value = ''; document.querySelector('#token').focus()"
        )
        tab.type(secured.token["reader"])
        tab.press("Enter")
        tab.wait(f"!document.querySelector('dialog') && {READY}")
        assert "No workflow matches" in tab.text()
        # What a script on the page could take away: nothing.
        kept = (
            "document.cookie + JSON.stringify({...localStorage, ...sessionStorage}) + location.href"
        )
        assert secured.token["reader"] not in tab.run(kept)
        assert "wfe_console" not in tab.run("document.cookie")
        urls = [base(server) + "api/session"]
        [cookie] = tab.call("Network.getCookies", urls=urls)["cookies"]
        assert cookie["httpOnly"]
        assert cookie["secure"]
        assert cookie["sameSite"] == "Strict"
        assert cookie["session"]
        assert not any(secured.token["reader"] in url for url in tab.requested)

        tab.run(
            "[...document.querySelectorAll('button')].find(b => b.innerText === 'Log out').click()"
        )
        tab.wait("document.querySelector('dialog #token')")
        assert tab.call("Network.getCookies", urls=urls)["cookies"] == []
        assert tab.problems == []
