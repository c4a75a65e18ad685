"""The console behind the admin port: who may do what, and what strangers can't do to it."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc.aio
import pytest

from tests.console import scene
from tests.support.admin import AdminServer, Answer
from tests.support.authority import Authority
from tests.support.server import ServerProcess
from wfe_persistence.access import tokens
from wfe_persistence.http.server import MAX_BODY_BYTES, MAX_CONNECTIONS, MAX_STREAMS
from wfe_persistence.settings import Settings
from wfe_persistence_client import (
    EventSubscription,
    WorkflowInstance,
    WorkflowStatus,
    connect,
)
from wfe_persistence_client.administration import EXPLANATIONS
from wfe_persistence_console import Console, actions, live, reads
from wfe_persistence_console.console import MOST_ACTIONS, MOST_LOGINS, MOST_READS, PAGES
from wfe_persistence_console.parameters import PARAMETERS
from wfe_persistence_console.reads import READS
from wfe_persistence_console.sessions import (
    IDLE_SECONDS,
    LONGEST_SECONDS,
    MAX_SESSIONS,
    MAX_SESSIONS_OF_A_TOKEN,
    Sessions,
)
from wfe_persistence_console.web import Request


def read(server: AdminServer, name: str, /, **parameters: object) -> dict[str, Any]:
    answer = server.get(f"/console/api/{name}?{urlencode(parameters)}")
    assert answer.status == 200, answer
    value: dict[str, Any] = json.loads(answer.text)
    return value


def post(server: AdminServer, name: str, body: object, query: str = "", **headers: str) -> Answer:
    """As a page of the console sends it."""
    host, port = server.admin
    scheme = "https" if server.context else "http"
    usual = {
        "content-type": "application/json",
        "origin": f"{scheme}://{host}:{port}",
        "sec-fetch-site": "same-origin",
    }
    usual |= {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {name: value for name, value in usual.items() if value}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.get(f"/console/api/{name}{query}", sent, method="POST", body=data)


# ----- settings -----


def test_off_by_default() -> None:
    assert not Settings().console
    assert not Settings(admin_listen="127.0.0.1:0", console=True).console_write


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"console": True}, "console: needs admin-listen"),
        ({"console_write": True, "admin_listen": "localhost:1"}, "console-write: needs console"),
        (
            {
                "console": True,
                "admin_listen": "localhost:1",
                "tls_client_ca": Path("x"),
                "tls_cert": Path("x"),
                "tls_key": Path("x"),
            },
            "one more server on the same database.*log in with tokens",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings).require_protection()


def test_without_the_setting_there_is_none(log_file: Path, database_url: str) -> None:
    with AdminServer(log_file, "--db-url", database_url) as server:
        assert server.get("/console/").status == 404
        assert post(server, "suspend", {}).status == 405


# ----- pages and files -----


def test_every_page_is_the_same_and_tells_the_browser_to_be_careful(shop: AdminServer) -> None:
    pages = {shop.get(f"/console/{page}").text for page in PAGES}
    assert len(pages) == 1
    answer = shop.get("/console/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", answer.text)
    listed = shop.get("/nothing")
    assert "/console/" in listed.text


def test_files_name_no_other_host(shop: AdminServer) -> None:
    static = scene.ROOT / "console/wfe_persistence_console/static"
    files = [file for file in static.rglob("*") if file.is_file()]
    assert len(files) > 20
    for file in files:
        named = set(re.findall(r"https?://[^\s\"'`)]+", file.read_text()))
        assert named <= {"http://www.w3.org/2000/svg"}, file
        if file.name != "index.html":
            served = shop.get(f"/console/static/{file.relative_to(static)}")
            assert (served.status, served.text) == (200, file.read_text())


@pytest.mark.parametrize(
    "path",
    [
        "static/../console.py",
        "static/%2e%2e/console.py",
        "static/pages/../../web.py",
        "static//etc/passwd",
        "static/nothing.js",
        "static/index.html",
        "console.py",
        "x",
    ],
)
def test_there_is_nothing_else(shop: AdminServer, path: str) -> None:
    assert shop.get(f"/console/{path}").status == 404


# ----- what the pages are told -----


def test_what_is_read(shop: AdminServer) -> None:
    found = read(shop, "workflow", id="order-1042")["workflow"]
    assert found["status"] == "RUNNABLE"
    assert "12345678901234567890123" in found["data"], "as it is stored, with every digit"
    assert read(shop, "workflow", name="order-1042")["workflow"]["id"] == "order-1042"
    [waiting] = read(shop, "subscriptions", workflow="order-1042")["subscriptions"]
    assert (waiting["event"], waiting["held"]) == ("payment.confirmed", False)
    assert len(read(shop, "errors", workflow="order-1042")["errors"]) == 3
    [command] = read(shop, "commands", command="process_workflow", data="order-1042")["commands"]
    assert command["name"] == "PROCESS_WORKFLOW"
    assert {one["resource"] for one in read(shop, "locks")["locks"]} >= {"nightly-report"}
    assert read(shop, "queue-items", queue="mails", state="leased")["items"][0]["lease"]
    now = read(shop, "overview")
    assert now["backlog"] == 3
    assert now["oldest_due"]["id"] == "invoice-2"
    assert sum(read(shop, "throughput")["ended"]) >= 40


@pytest.mark.parametrize(
    ("parameters", "ids"),
    [
        ({"status": "suspended"}, {"order-1043"}),
        ({"definition": "invoice"}, {"invoice-0", "invoice-1", "invoice-2"}),
        ({"reference": "customer-17"}, {"order-1042"}),
        ({"name": "invoice-2026-1"}, {"invoice-1"}),
        ({"event": "payment.confirmed"}, {"order-1042"}),
        ({"event": "payment.confirmed", "key": "other"}, set()),
        ({"definition": "order", "older": 86400}, {"order-1042"}),
        ({"errors": 3600, "definition": "order"}, {"order-1042", "order-1043"}),
        ({"definition": "invoice", "stuck": 6000}, {"invoice-1", "invoice-2"}),
        ({"root": "campaign-north"}, {"campaign-north-1", "campaign-north-2"}),
    ],
)
def test_filters(shop: AdminServer, parameters: dict[str, object], ids: set[str]) -> None:
    found = {one["id"] for one in read(shop, "workflows", **parameters)["workflows"]}
    assert {one for one in found if not one.startswith("order-shop")} == ids
    assert sum(read(shop, "count", **parameters)["counts"].values()) == len(found)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("workflows?key=x", "key: needs event"),
        ("count?key=x", "key: needs event"),
        ("events?key=x", "key: needs event"),
        ("subscriptions?key=x", "key: needs event"),
        ("commands?data=x", "data: needs command"),
        ("workflow?id=x&name=y", "name: is of no use with id"),
        ("workflows?order=best", "order: is not newest or oldest"),
        ("workflows?statuses=runnable", "statuses: there is no such parameter"),
        ("workflows?status=complete&status=runnable", "status: is given more than once"),
        ("watch?workflow=x", "workflow: there is no such parameter"),
    ],
)
def test_what_would_choose_nothing_is_refused(shop: AdminServer, query: str, said: str) -> None:
    answer = shop.get(f"/console/api/{query}")
    assert answer.status == 400
    assert said in answer.text


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_each_parameter_is_read(name: str) -> None:
    """None is taken and then forgotten."""
    functions: dict[str, Callable[..., object]] = {**READS, "watch": live.watch}
    function = functions[name]
    source = inspect.getsource(function)
    seen = ""
    while source != seen:  # and what it calls here
        seen = source
        for helper in (reads._filter, reads._pointer_page, reads._order, reads._size):
            if f"{helper.__name__}(" in source and inspect.getsource(helper) not in source:
                source += inspect.getsource(helper)
    assert [one for one in PARAMETERS[name] if f'"{one}"' not in source] == []


def test_a_list_goes_on_where_its_page_ends(shop: AdminServer) -> None:
    asked: dict[str, object] = {"definition": "mail", "younger": 86400, "size": 7}
    ids: list[str] = []
    while True:
        page = read(shop, "workflows", **asked)
        ids += [one["id"] for one in page["workflows"]]
        if not page["next"]:
            break
        # The age counts from the same moment, or it would be another list.
        asked |= {"cursor": page["next"], "at": page["at"]}
    assert sorted(ids) == sorted(f"mail-{n}" for n in range(40))


def test_a_pointer_is_found_where_its_page_was(shop: AdminServer) -> None:
    first = read(shop, "pointers", id="batch-10000", size=500)
    second = read(shop, "pointers", id="batch-10000", size=500, cursor=first["next"])
    assert "documents" not in second["pointers"][0]
    wanted = second["pointers"][7]["id"]
    place = {"id": "batch-10000", "size": 500, "cursor": first["next"]}
    found = read(shop, "pointer", pointer=wanted, **place)["pointer"]
    assert json.loads(found["documents"]["outcome"]) == {"item": 507, "sum": 760.5}
    missing = shop.get(f"/console/api/pointer?{urlencode({**place, 'pointer': 'none'})}")
    assert missing.status == 404


def test_the_token_of_a_claim_stays_in_the_server(shop: AdminServer) -> None:
    answer = shop.get("/console/api/subscriptions?held=true")
    [held] = json.loads(answer.text)["subscriptions"]
    assert held["worker"] == "worker-7"
    assert "token" not in answer.text


@pytest.mark.parametrize("name", sorted(READS))
def test_bad_parameters_are_the_callers_fault(shop: AdminServer, name: str) -> None:
    hostile = [
        "",
        "x" * 3000,
        "\0",
        "\udcff",
        "-1",
        "99999999999",
        "../..",
        "'; DROP TABLE x",
        "[]",
    ]
    fields = "id name status version reference event key younger stuck at cursor size queue state"
    for (
        field
    ) in f"{fields} pointer command data leased processed namespace errors workflow".split():
        for value in hostile:
            query = urlencode({field: value}, errors="surrogatepass")
            answer = shop.get(f"/console/api/{name}?{query}")
            assert answer.status in (200, 400, 404), (field, value, answer)
            assert "Traceback" not in answer.text


# ----- changes -----


@pytest.fixture
async def own(shop: AdminServer) -> WorkflowInstance:
    """A workflow of the test's own."""
    workflow = WorkflowInstance(workflow_definition_id="console-test", version=1, data={})
    async with connect(shop.address) as store:
        workflow.id = await store.create_new_workflow(workflow)
        return await store.get_workflow_instance(workflow.id)


async def stored(server: AdminServer, workflow_id: str) -> WorkflowInstance:
    async with connect(server.address) as store:
        return await store.get_workflow_instance(workflow_id)


async def test_suspend_resume_terminate_delete(shop: AdminServer, own: WorkflowInstance) -> None:
    def act(name: str, revision: int) -> Answer:
        return post(shop, name, {"id": own.id, "revision": str(revision)})

    assert act("suspend", own.revision + 7).status == 409, "somebody has written it meanwhile"
    assert act("resume", own.revision).status == 409, "it is not suspended"
    answer = act("suspend", own.revision)
    assert answer.status == 200, answer
    now = await stored(shop, own.id)
    assert now.status is WorkflowStatus.SUSPENDED
    assert str(now.revision) == json.loads(answer.text)["revision"]
    assert act("resume", now.revision).status == 200
    items = read(shop, "queue-items", queue="orders", id=own.id)["items"]
    assert [one["id"] for one in items] == [own.id], "hosts are told to run it on"
    now = await stored(shop, own.id)
    assert now.status is WorkflowStatus.RUNNABLE
    assert now.next_execution is not None, "it is due, for hosts without queues"
    async with connect(shop.address) as store, store.lock(own.id, owner="host-7"):
        answer = act("suspend", now.revision)
        assert (answer.status, "host-7 holds the lock on it" in answer.text) == (409, True)
    assert (await stored(shop, own.id)).revision == now.revision
    assert act("terminate", now.revision).status == 200
    now = await stored(shop, own.id)
    assert now.status is WorkflowStatus.TERMINATED
    assert now.complete_time is not None
    assert act("delete", 1 + now.revision).status == 409
    assert act("delete", now.revision).status == 200
    assert act("delete", now.revision).status == 404


async def test_release_by_force(shop: AdminServer) -> None:
    async with connect(shop.address) as store:
        id_ = await store.create_event_subscription(
            EventSubscription(
                workflow_id="console-test", step_id=0, execution_pointer_id="p",
                event_name="console-test", event_key="", subscribe_as_of=datetime.now(UTC),
            )
        )  # fmt: skip
        claim = await store.claim_subscription(id_, duration=timedelta(hours=1), worker_id="w")
        lock = await store.acquire_lock("console-test", ttl=timedelta(hours=1))
        assert claim is not None
        assert lock is not None
        assert claim.epoch is not None
        stale = {"id": id_, "epoch": str(claim.epoch + 1)}
        assert post(shop, "release-subscription", stale).status == 409
        released = {"id": id_, "epoch": str(claim.epoch)}
        assert post(shop, "release-subscription", released).status == 200
        assert (await store.get_subscription(id_)).external_token is None
        assert post(shop, "release-subscription", released).status == 409
        await store.terminate_subscription(id_)

        other = {"resource": "console-test", "epoch": str(lock.epoch + 1)}
        assert post(shop, "break-lock", other).status == 409
        assert await store.list_locks(resource_prefix="console-test")
        held = {"resource": "console-test", "epoch": str(lock.epoch)}
        assert post(shop, "break-lock", held).status == 200
        assert not await store.list_locks(resource_prefix="console-test")


async def test_read_only_unless_it_may_write(log_file: Path, database_url: str) -> None:
    with AdminServer(log_file, "--db-url", database_url, "--console") as server:
        async with connect(server.address) as store:
            id_ = await store.create_new_workflow(
                WorkflowInstance(workflow_definition_id="x", version=1, data={})
            )
        for name in ("suspend", "terminate", "delete", "break-lock", "release-subscription"):
            answer = post(server, name, {"id": id_, "revision": "1"})
            assert answer.status == 403
            assert "--console-write" in answer.text
        assert (await stored(server, id_)).status is WorkflowStatus.RUNNABLE
        assert json.loads(server.get("/console/api/session").text)["write"] is False


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "text/plain"}, 415),
        ({"content_type": "application/x-www-form-urlencoded"}, 415),
        ({"content_type": ""}, 415),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:80", "origin": "http://evil.example:80"}, 421),
    ],
)
async def test_other_sites_change_nothing(
    shop: AdminServer, own: WorkflowInstance, headers: dict[str, str], status: int
) -> None:
    body = {"id": own.id, "revision": str(own.revision)}
    assert post(shop, "suspend", body, **headers).status == status
    assert (await stored(shop, own.id)).status is WorkflowStatus.RUNNABLE
    assert post(shop, "suspend", body, sec_fetch_site="").status == 200


def test_other_sites_start_nothing(shop: AdminServer) -> None:
    """They could not read the answer, but have everything counted."""
    for site, status in (("cross-site", 403), ("same-site", 403), ("none", 200), ("", 200)):
        headers = {"sec-fetch-site": site} if site else {}
        assert shop.get("/console/api/throughput", headers).status == status, site


def test_what_is_malformed_is_refused(shop: AdminServer) -> None:
    assert shop.get("/console/api/workflows", {"Host": "["}).status == 400
    assert post(shop, "suspend", {"id": "x"}, origin="http://[").status in (400, 403)
    beyond = shop.get("/console/api/workflows?at=0001-01-02&younger=999999999")
    assert beyond.status == 400


def test_without_logins_no_name_of_another_site_leads_here(shop: AdminServer) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:9"):
        assert shop.get("/console/api/workflows", {"Host": host}).status in (400, 421), host
    for host in ("localhost", "localhost:9", "127.0.0.1:9", "[::1]:9", "wfe.localhost"):
        assert shop.get("/console/api/workflows", {"Host": host}).status == 200, host


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'"x"',
        b"\xff",
        b"[" * 20_000,
        b'{"id": 1}',
        b'{"id": null, "revision": 1}',
    ],
)
def test_malformed_bodies(shop: AdminServer, body: bytes) -> None:
    assert post(shop, "suspend", body).status == 400


# ----- what strangers can do to the port -----


def raw(server: AdminServer, sent: bytes) -> bytes:
    with socket.create_connection(server.admin, timeout=20) as client:
        client.sendall(sent)
        received = b""
        try:
            while data := client.recv(65_536):
                received += data
        except ConnectionResetError:
            pass
        return received


def test_large_bodies_are_not_read(shop: AdminServer) -> None:
    start = b"POST /console/api/suspend HTTP/1.1\r\nHost: localhost\r\n"
    declared = raw(shop, start + b"Content-Length: 99999999\r\n\r\n" + b"x" * (MAX_BODY_BYTES + 1))
    assert declared.startswith(b"HTTP/1.1 413 ")
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    chunked = raw(shop, start + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3)
    assert chunked.startswith(b"HTTP/1.1 413 ")
    # Elsewhere there is no body at all.
    other = raw(shop, b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
    assert other.startswith(b"HTTP/1.1 405 ")


def test_slow_bodies_lock_nobody_out(shop: AdminServer) -> None:
    head = b"POST /console/api/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    slow = []
    try:
        for _ in range(MAX_CONNECTIONS * 2):
            slow.append(socket.create_connection(shop.admin))
            slow[-1].sendall(head)
        for _ in range(10):
            assert shop.get("/livez").status == 200
    finally:
        for each in slow:
            each.close()


def _watch(server: AdminServer) -> socket.socket:
    client = socket.create_connection(server.admin, timeout=20)
    client.sendall(b"GET /console/api/watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client


def test_streams_are_few_and_end_with_their_clients(shop: AdminServer) -> None:
    streams = []
    try:
        for _ in range(MAX_STREAMS):
            streams.append(_watch(shop))
            assert streams[-1].recv(13).startswith(b"HTTP/1.1 200 ")
        refused = _watch(shop)
        assert refused.recv(1000).startswith(b"HTTP/1.1 503 ")
        refused.close()
        for _ in range(10):
            assert shop.get("/readyz").status == 200
    finally:
        for each in streams:
            each.close()
    deadline = time.monotonic() + 20
    while True:
        with _watch(shop) as again:
            if again.recv(13).startswith(b"HTTP/1.1 200 "):
                break
        assert time.monotonic() < deadline, "the places of those who left are not given back"
        time.sleep(0.1)


async def test_changes_are_streamed_and_resumed(shop: AdminServer, own: WorkflowInstance) -> None:
    def events(query: str) -> Generator[dict[str, Any], None, None]:
        with socket.create_connection(shop.admin, timeout=20) as client:
            request = f"GET /console/api/watch?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            client.sendall(request.encode())
            file = client.makefile("rb")
            for line in file:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    stream = events(urlencode({"id": own.id}))
    first = next(stream)
    assert first["changes"] == []
    assert post(shop, "suspend", {"id": own.id, "revision": str(own.revision)}).status == 200
    changed = next(one for one in stream if one["changes"])
    assert changed["changes"][-1]["status"] == "SUSPENDED"
    stream.close()
    resumed = events(urlencode({"id": own.id, "after": first["cursor"]}))
    again = next(one for one in resumed if one["changes"])
    assert again["changes"][-1]["id"] == own.id
    resumed.close()
    broken = next(events(urlencode({"after": "no cursor"})))
    assert broken["reason"]


# ----- logins -----


POLICY = """
[[grant]]
principals = ["token:reader"]
role = "reader"
namespaces = ["*"]

[[grant]]
principals = ["token:operator"]
role = "operator"
namespaces = ["*"]

[[grant]]
principals = ["token:tenant"]
role = "operator"
namespaces = ["tenant"]

[[grant]]
principals = ["token:monitor"]
role = "monitor"
namespaces = ["*"]
"""


class Secured:
    """A server with TLS and tokens, and its console."""

    def __init__(self, directory: Path, database_url: str, *more: str) -> None:
        self.authority = Authority(directory / "authority")
        pair = self.authority.issue("server", "store.example", "127.0.0.1")
        (directory / "policy.toml").write_text(POLICY)
        self.tokens = directory / "tokens"
        self.token = {
            name: tokens.create_token(self.tokens, name, None)[1]
            for name in ("reader", "operator", "tenant", "monitor")
        }
        self.server = AdminServer(
            directory / "log", "--db-url", database_url,
            "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
            "--token-file", str(self.tokens), "--policy-file", str(directory / "policy.toml"),
            "--console", "--console-write", "--log-level", "debug", *more,
        )  # fmt: skip
        self.server.context = ssl.create_default_context(cafile=str(self.authority.ca_file))
        self.server.credentials = self.authority.channel_credentials()

    def log_in(self, name: str) -> str:
        """The cookie of a new session."""
        answer = post(self.server, "login", {"token": self.token[name]})
        assert answer.status == 200, answer
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert "Secure" in cookie
        return cookie.split(";")[0]

    def get(self, name: str, cookie: str = "") -> Answer:
        return self.server.get(f"/console/api/{name}", {"cookie": cookie} if cookie else {})


@pytest.fixture
def secured(tmp_path: Path, database_url: str) -> Iterator[Secured]:
    secured = Secured(tmp_path, database_url)
    with secured.server:
        yield secured
    log = secured.server.log()
    for token in secured.token.values():
        assert token not in log
    assert ": bug" not in log


async def test_nobody_sees_anything_without_a_session(secured: Secured) -> None:
    server = secured.server
    assert server.get("/console/").status == 200, "the page itself is no secret"
    assert json.loads(secured.get("session").text) == {
        "authentication": True,
        "signed_in": False,
        "write": True,
        "explanations": EXPLANATIONS,
    }
    for name in (*READS, "watch", "nothing"):
        for cookie in ("", "wfe_console=", "wfe_console=x", "other=x; wfe_console=a=b"):
            assert secured.get(name, cookie).status == 401
    for name in ("suspend", "delete", "logout"):
        assert post(server, name, {}).status == 401
    # A token is taken at the login only: neither a link nor a header has it.
    bearer = {"Authorization": f"Bearer {secured.token['operator']}"}
    assert server.get("/console/api/workflows", bearer).status == 401
    for bad in ("wrong", "", "\u00e9", "x" * 20_000, "a\nb"):
        refused = post(server, "login", {"token": bad})
        assert refused.status in (400, 401), bad
        assert "set-cookie" not in refused.headers
    assert post(server, "login", {"token": secured.token["monitor"]}).status == 403
    other_site = post(
        server, "login", {"token": secured.token["reader"]}, origin="https://evil.example"
    )
    assert other_site.status == 403


async def test_a_session_may_do_what_its_token_may(secured: Secured) -> None:
    server = secured.server
    reader, operator, tenant = (secured.log_in(n) for n in ("reader", "operator", "tenant"))
    for cookie in (reader, operator):
        assert secured.get("workflows", cookie).status == 200
    assert secured.get("workflows", tenant).status == 403
    assert secured.get("namespaces", tenant).status == 200
    delete = {"id": "none", "revision": "1"}
    assert post(server, "delete", delete, cookie=reader).status == 403
    assert post(server, "delete", delete, cookie=operator).status == 404

    assert post(server, "logout", {}, cookie=reader).status == 200
    assert secured.get("workflows", reader).status == 401
    assert secured.get("workflows", operator).status == 200
    assert secured.get("session", operator).status == 200


def test_a_session_ends_with_its_token(secured: Secured) -> None:
    token, secret = tokens.create_token(secured.tokens, "reader", None)
    secured.token["reader"] = secret
    deadline = time.monotonic() + 20
    while post(secured.server, "login", {"token": secret}).status != 200:
        assert time.monotonic() < deadline, "the server does not know the new token"
        time.sleep(0.1)
    cookie = secured.log_in("reader")
    assert secured.get("workflows", cookie).status == 200
    tokens.revoke_tokens(secured.tokens, [token.id])
    deadline = time.monotonic() + 20
    while secured.get("workflows", cookie).status != 401:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_new_certificate_is_trusted(tmp_path: Path, database_url: str) -> None:
    """Of the server by its own console, when they have to connect again."""
    secured = Secured(tmp_path, database_url, "--max-connection-age", "1")
    with secured.server as server:
        cookie = secured.log_in("reader")
        secured.authority.issue("server", "store.example", "127.0.0.1")
        deadline = time.monotonic() + 40
        while "was read again" not in server.log():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3)  # by then, the old connection has ended
        while secured.get("workflows", cookie).status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)


async def test_beside_a_server_that_wants_certificates(tmp_path: Path, database_url: str) -> None:
    """As docs/console.md says: one more server on the same database, for the console alone."""
    authority = Authority(tmp_path / "clients")
    pair = authority.issue("server", "127.0.0.1")
    (tmp_path / "hosts.toml").write_text(
        '[[grant]]\nprincipals = ["cert:host"]\nrole = "host"\nnamespaces = ["*"]\n'
    )
    main = ServerProcess(
        tmp_path / "main.log", "--db-url", database_url, "--policy-file",
        str(tmp_path / "hosts.toml"), "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
        "--tls-client-ca", str(authority.ca_file),
    )  # fmt: skip
    main.credentials = authority.channel_credentials(
        authority.issue("host", "host.example", common_name="host")
    )
    audit = tmp_path / "audit"
    secured = Secured(tmp_path, database_url, "--audit-log", str(audit))
    with main, secured.server as server:
        async with connect(main.address, credentials=main.credentials) as store:
            id_ = await store.create_new_workflow(
                WorkflowInstance(workflow_definition_id="x", version=1, data={})
            )
            cookie = secured.log_in("operator")
            seen = json.loads(secured.get(f"workflow?id={id_}", cookie).text)["workflow"]
            asked = {"id": id_, "revision": seen["revision"]}
            changed = post(server, "suspend", asked, cookie=cookie)
            assert changed.status == 200, changed
            workflow = await store.get_workflow_instance(id_)
            assert workflow.status is WorkflowStatus.SUSPENDED
    assert "token:operator" in audit.read_text()


def test_several_processes(tmp_path: Path, database_url: str) -> None:
    secured = Secured(tmp_path, database_url, "--workers", "2")
    with secured.server:
        cookie = secured.log_in("operator")
        for _ in range(5):
            assert secured.get("overview", cookie).status == 200


def test_the_server_of_a_socket(tmp_path: Path, database_url: str) -> None:
    server = AdminServer(
        tmp_path / "log", "--db-url", database_url, "--console",
        "--listen", f"unix:{tmp_path / 's'}",
    )  # fmt: skip
    with server:
        assert read(server, "workflows")["workflows"] == []


# ----- sessions by themselves -----


def test_sessions_are_bounded_and_end() -> None:
    now = 0.0
    sessions = Sessions(lambda: now)
    cookies = [sessions.begin("one") for _ in range(MAX_SESSIONS_OF_A_TOKEN + 3)]
    assert [sessions.find(cookie) is None for cookie in cookies].count(True) == 3
    assert sessions.find(cookies[-1])

    used = sessions.begin("used")
    for n in range(2 * MAX_SESSIONS):
        assert sessions.find(used)
        sessions.begin(f"token {n}")
        assert len(sessions) <= MAX_SESSIONS
    assert sessions.find(cookies[-1]) is None, "the one that was not used for longest goes first"

    found = sessions.find(used)
    assert found is not None
    now += IDLE_SECONDS + 1
    assert sessions.is_over(found)
    assert sessions.find(used) is None
    again = sessions.begin("again")
    while now < IDLE_SECONDS + 1 + LONGEST_SECONDS:
        assert sessions.find(again)
        now += IDLE_SECONDS / 2
    now += IDLE_SECONDS / 2
    assert sessions.find(again) is None
    assert len(sessions) == 0


def test_there_is_always_room_for_a_probe() -> None:
    assert MOST_READS + MOST_LOGINS + MOST_ACTIONS + MAX_STREAMS < MAX_CONNECTIONS


@asynccontextmanager
async def silent(*, authentication: bool) -> AsyncIterator[Console]:
    """A console that may change things, whose server does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        console = Console(
            lambda: grpc.aio.insecure_channel(address), authentication=authentication, write=True
        )
        yield console
        await console.close()


def asked(method: str, path: str, cookie: str = "") -> Request:
    headers = {
        "content-type": ["application/json"],
        "origin": ["http://localhost"],
        "host": ["localhost"],
        "cookie": [cookie],
    }
    body = {"token": "x", "id": "x", "resource": "x", "revision": "1", "epoch": "1"}
    return Request(method, path, {}, headers, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("authentication", "path", "most"),
    [
        (True, "api/login", MOST_LOGINS),
        (False, "api/workflows", MOST_READS),
        (False, "api/delete", MOST_ACTIONS),
    ],
    ids=["logins", "reads", "actions"],
)
async def test_calls_at_a_time_are_few(authentication: bool, path: str, most: int) -> None:
    """A console whose server does not answer: those who ask do not pile up calls."""
    async with silent(authentication=authentication) as console:
        request = asked("GET" if path == "api/workflows" else "POST", path)
        tasks = [asyncio.ensure_future(console.answer(request)) for _ in range(most + 20)]
        await asyncio.wait(tasks, timeout=5, return_when="FIRST_COMPLETED")
        await asyncio.sleep(0)
        refused = [task for task in tasks if task.done()]
        assert len(refused) >= 20
        assert {task.result().status for task in refused} == {HTTPStatus.TOO_MANY_REQUESTS}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # Who has gone has given his place back.
        again = asyncio.ensure_future(console.answer(request))
        await asyncio.wait([again], timeout=0.2)
        assert not again.done()
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)


async def test_a_session_changes_one_thing_at_a_time() -> None:
    async with silent(authentication=True) as console:
        mine, others = (f"wfe_console={console.sessions.begin(name)}" for name in ("a", "b"))
        first = asyncio.ensure_future(console.answer(asked("POST", "api/delete", mine)))
        await asyncio.sleep(0)
        for name in ("delete", "suspend", "break-lock"):
            answer = await console.answer(asked("POST", f"api/{name}", mine))
            assert answer.status == 429
            assert b"your last change is not done yet" in answer.body
        other = asyncio.ensure_future(console.answer(asked("POST", "api/delete", others)))
        await asyncio.wait([other], timeout=0.2)
        assert not other.done(), "nobody else waits for it"
        for task in (first, other):
            task.cancel()
        await asyncio.gather(first, other, return_exceptions=True)
        after = asyncio.ensure_future(console.answer(asked("POST", "api/delete", mine)))
        await asyncio.wait([after], timeout=0.2)
        assert not after.done()
        after.cancel()
        await asyncio.gather(after, return_exceptions=True)


async def test_a_change_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "LONGEST_SECONDS", 0.1)
    async with silent(authentication=False) as console:
        for name in actions.ACTIONS:
            answer = await console.answer(asked("POST", f"api/{name}"))
            assert answer.status == 504
            assert json.loads(answer.body)["error"]["reason"] == "TIMEOUT"
