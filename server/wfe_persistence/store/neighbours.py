"""What the servers of one store tell each other: which lines may be concerned by what they wrote.

They use LISTEN and NOTIFY, on a connection of their own each (`postgres/notices.py`), after the
commit. Nothing depends on it: what is not told, or lost, the lookout finds out a moment later.

A line is told of by a hash of its name, so that others who may listen in the same database learn
no names. A message begins with what it is and the random name of the server that sends it:

    h NAME FLAGS KINDS    "hello", every ten seconds: in lines of which kinds somebody waits there
    w NAME HASHES         "written": something may concern these lines
    a NAME                the same, of any line

A server tells only what somebody wants to know, as far as it knows: so one that is alone tells
nothing. (Until it has listened for a while, and so has heard everybody's hello, it tells all.) One
that can't listen, as behind PgBouncer in transaction mode, tells nothing, but says hello through
the pool, with the flag "mute"; then the others look often, too.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

import psycopg

from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.lookout import Lookout
from wfe_persistence.store.postgres.notices import (
    MAX_PAYLOAD_BYTES,
    NOTIFY,
    Notices,
    NoticesLostError,
)
from wfe_persistence.store.postgres.reachability import is_full, why
from wfe_persistence.store.rows import text, text_array
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Line, Waiters

log = logging.getLogger(__name__)

# Seconds: between two hellos; how long one counts; and how long its sender may take to hear it.
_HELLO_SECONDS: Final = 10.0
_PEER_SECONDS: Final = 35.0
_ECHO_SECONDS: Final = 3.0

# For how long (seconds) somebody wants to know of a kind after the last one has waited for it: who
# works off a queue comes back at once.
_LINGER_SECONDS: Final = 30.0

# What is told within this time (seconds) is told together.
_TOGETHER_SECONDS: Final = 0.008

# More lines than this are not told one by one.
_MOST_LINES: Final = 5_000

# After a hello with new kinds, until others are taken to know it (seconds).
_KNOWN_SECONDS: Final = 0.02

# For so long (seconds) a server that begins to listen tells everything. The others answer its hello
# at once, and look by themselves after that; those of releases that do not have answered by then.
_UNKNOWN_SECONDS: Final = 1.0

# The pause (seconds) until the next attempt to listen, the first and the longest one: after a loss;
# and where it is not to be had, or calls need the connection.
_RETRY_SECONDS: Final = (0.5, 15.0)
_REFUSED_SECONDS: Final = (2.0, 60.0)

_HASH_CHARACTERS: Final = 11


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _hash(line: Line) -> str:
    name = "\0".join((line.namespace, line.kind.name, line.name))
    return _text(blake2b(name.encode(), digest_size=8).digest())


@dataclass(slots=True)
class _Peer:
    """Another server."""

    kinds: frozenset[str]
    is_mute: bool
    until: float
    """When it is forgotten, by the event loop's clock."""


class _RefusedError(Exception):
    """Listening is not to be had here; the message says why."""


@dataclass(slots=True)
class _Session:
    """One connection, as long as it works."""

    notices: Notices
    since: float
    echoed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last hello has come back."""


class Neighbours:
    """The other servers of a store. `default`: its default namespace, by which they find each
    other."""

    def __init__(self, default: Store, waiters: Waiters, lookout: Lookout) -> None:
        self._default = default
        self._waiters = waiters
        self._lookout = lookout
        schema = default.schema
        channel = blake2b(f"{schema.name}.{schema.table_prefix}".encode(), digest_size=12)
        self.channel = f"wfe_{channel.hexdigest()}"
        """The name of the channel; it depends on the schema, because other servers may use the same
        database for another store."""
        self._name = _text(secrets.token_bytes(8))
        self._peers: dict[str, _Peer] = {}
        self._session: _Session | None = None
        self._proving: _Session | None = None
        # The lines of this server by their hashes, and how often each is wanted: one without a name
        # by each line of its kind.
        self._lines: dict[str, Line] = {}
        self._counts: dict[str, int] = {}
        # The kinds that are, or were a moment ago, wanted here, with the time until which; and
        # those of them in the last hello.
        self._wanted: dict[str, float] = {}
        self._announced: frozenset[str] = frozenset()
        self._was_asked = False
        """Whether a server has asked who is there, which may have told nobody anything before."""
        self._told: dict[str, None] = {}
        self._work = asyncio.Event()
        self._hello_at = 0.0
        self._said = ""
        self._gives_way = False
        waiters.teller = self
        lookout.is_told = lambda: (
            self.is_listening and not any(peer.is_mute for peer in self._peers.values())
        )
        default.database.reachability.when_full = self.give_way
        metrics.LISTENING.read = lambda: [((), float(self.is_listening))]
        for direction in ("sent", "received"):
            metrics.NOTIFICATIONS.add((direction,), 0)

    @property
    def is_listening(self) -> bool:
        """Whether the others can tell this server what they write."""
        return self._session is not None

    # ----- as a Teller

    def tell(self, line: Line) -> None:
        """Something has been committed that concerns a line, or all lines of a kind."""
        session = self._session
        if session is None:
            return
        now = asyncio.get_running_loop().time()
        if now - session.since > _UNKNOWN_SECONDS and not any(
            line.kind.name in peer.kinds for peer in self._peers.values()
        ):
            return
        self._told[_hash(line)] = None
        self._work.set()

    def wants(self, line: Line) -> None:
        """Somebody here waits in a line that nobody was in."""
        for each in (line, Line(line.namespace, line.kind, "")):
            key = _hash(each)
            self._lines[key] = each
            self._counts[key] = self._counts.get(key, 0) + 1
        self._wanted.pop(line.kind.name, None)
        if line.kind.name not in self._announced:
            self._hello_at = 0.0
            self._work.set()

    def unwants(self, line: Line) -> None:
        """Nobody does any more."""
        for each in (line, Line(line.namespace, line.kind, "")):
            key = _hash(each)
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key], self._lines[key]
        self._wanted[line.kind.name] = asyncio.get_running_loop().time() + _LINGER_SECONDS

    # ----- the connection

    def give_way(self) -> None:
        """The database gives this server no more connections: leave this one to calls."""
        if self._session is not None:
            self._gives_way = True
            self._session.notices.give_up("its connection is needed for calls")

    async def run(self) -> None:
        """Listen and tell, for as long as the server runs."""
        loop = asyncio.get_running_loop()
        pause, refused_pause = _RETRY_SECONDS[0], _REFUSED_SECONDS[0]
        while True:
            if not self._default.database.reachability.count_open():
                await asyncio.sleep(_RETRY_SECONDS[0])  # calls come first
                continue
            begun = loop.time()
            refused = False
            try:
                await self._listen()
            except _RefusedError as exc:
                refused = True
                self._say(str(exc))
            except NoticesLostError as exc:
                refused, self._gives_way = self._gives_way, False
                self._say(str(exc))
            except (psycopg.OperationalError, TimeoutError) as exc:
                refused = isinstance(exc, psycopg.OperationalError) and is_full(exc)
                self._say(why(exc))
            except Exception:
                log.exception("bug: can't listen to other servers")
                refused = True
            if loop.time() - begun > _REFUSED_SECONDS[1]:
                pause, refused_pause = _RETRY_SECONDS[0], _REFUSED_SECONDS[0]
            if refused:
                await self._be_mute(refused_pause * random.uniform(0.75, 1.25))
                refused_pause = min(4 * refused_pause, _REFUSED_SECONDS[1])
            else:
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, _RETRY_SECONDS[1])

    def _say(self, reason: str) -> None:
        """Log once why nobody can tell this server anything."""
        if reason != self._said:
            self._said = reason
            log.warning(
                "can't listen to other servers, and looks for what they write twice a second: %s",
                reason,
            )

    async def _listen(self) -> None:
        """One connection, until it is lost."""
        loop = asyncio.get_running_loop()
        notices = await Notices.open(self._default.database.source, self.channel, self._heard)
        session = _Session(notices, loop.time())
        try:
            await self._prove(session)
            self._session = session
            self._peers.clear()
            self._said = ""
            log.info("listens to other servers")
            # Whatever was written meanwhile, nobody has told.
            self._waiters.stir_everything()
            self._lookout.reconsider()
            self._hello_at = 0.0
            notices.lost.add_done_callback(lambda _: self._work.set())
            await self._talk(session, asks=True)
        finally:
            self._session = None
            self._told.clear()
            self._lookout.reconsider()
            notices.close()

    async def _prove(self, session: _Session) -> None:
        """Have a hello come back that was sent on another connection. A pooler may give what is
        sent on the same one back at once, although it never passes on anything later."""
        self._proving = session
        try:
            await self._say_hello_through_pool()
            async with asyncio.timeout(_ECHO_SECONDS):
                await session.echoed.wait()
        except TimeoutError:
            await session.notices.unlisten()
            raise _RefusedError(
                "no notifications come through; PgBouncer passes none on in transaction mode"
            ) from None
        except PersistenceError as exc:
            raise NoticesLostError(str(exc)) from exc
        finally:
            self._proving = None

    async def _talk(self, session: _Session, *, asks: bool) -> None:
        """Say hello and tell what is to be told, until the connection is lost."""
        loop = asyncio.get_running_loop()
        sent = 0.0
        while True:
            if loop.time() >= self._hello_at:
                await self._say_hello(session, asks=asks)
                asks = False
            if self._told:
                if (pause := sent + _TOGETHER_SECONDS - loop.time()) > 0:
                    await asyncio.sleep(pause)
                payloads = self._take_told()
                sent = loop.time()
                await session.notices.send(payloads)
                metrics.NOTIFICATIONS.add(("sent",), len(payloads))
                continue
            self._work.clear()
            if session.notices.lost.done():
                raise session.notices.lost.result()
            timer = loop.call_at(self._hello_at, self._work.set)
            try:
                await self._work.wait()
            finally:
                timer.cancel()

    def _take_told(self) -> list[str]:
        """The messages of all that is to be told."""
        told, self._told = list(self._told), {}
        if len(told) > _MOST_LINES:
            return [f"a {self._name}"]
        head = f"w {self._name} "
        most = (MAX_PAYLOAD_BYTES - len(head)) // _HASH_CHARACTERS
        return [head + "".join(told[at : at + most]) for at in range(0, len(told), most)]

    async def _say_hello(self, session: _Session, *, asks: bool) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._hello_at = now + _HELLO_SECONDS * random.uniform(0.8, 1)
        for name in [n for n, peer in self._peers.items() if peer.until < now]:
            del self._peers[name]
        kinds = self._kinds(now)
        new = kinds if self._was_asked else kinds - self._announced
        self._was_asked = False
        self._announced = kinds
        session.echoed.clear()
        await session.notices.send([self._hello("?" if asks else "-", kinds)])
        metrics.NOTIFICATIONS.add(("sent",))
        try:
            async with asyncio.timeout(_ECHO_SECONDS):
                await session.echoed.wait()
        except TimeoutError:
            raise NoticesLostError("nothing comes back any more") from None
        if new:
            # Others may have written before they knew that it is wanted here.
            loop.call_later(_KNOWN_SECONDS, self._look_at_kinds, new)

    def _look_at_kinds(self, names: Iterable[str]) -> None:
        for line, _ in list(self._waiters.lines()):
            if line.kind.name in names:
                self._waiters.stir_here(line)

    def _kinds(self, now: float) -> frozenset[str]:
        """The names of the kinds that are wanted here."""
        self._wanted = {name: until for name, until in self._wanted.items() if until > now}
        return frozenset(line.kind.name for line in self._lines.values()) | self._wanted.keys()

    def _hello(self, flags: str, kinds: Iterable[str] = ()) -> str:
        return f"h {self._name} {flags} {' '.join(sorted(kinds))}"

    async def _say_hello_through_pool(self, flags: str = "-") -> None:
        await self._default.write_once(NOTIFY, text(self.channel), text_array([self._hello(flags)]))

    async def _be_mute(self, seconds: float) -> None:
        """Only say hello, so that those who listen know that they are told nothing from here."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            try:
                await self._say_hello_through_pool("m")
            except PersistenceError as exc:
                log.debug("can't say hello to other servers: %s", exc)
            pause = _HELLO_SECONDS * random.uniform(0.8, 1)
            await asyncio.sleep(max(0.0, min(pause, until - loop.time())))

    def _heard(self, message: str) -> None:
        """A message of any server; what can't be read is of a release that is yet to come, or of a
        stranger."""
        what, _, rest = message.partition(" ")
        name, _, rest = rest.partition(" ")
        if name == self._name:
            session = self._session or self._proving
            if what == "h" and session is not None:
                session.echoed.set()
            return
        metrics.NOTIFICATIONS.add(("received",))
        if what == "h":
            self._heard_hello(name, rest.split(" "))
        elif what == "w":
            for at in range(0, len(rest), _HASH_CHARACTERS):
                if line := self._lines.get(rest[at : at + _HASH_CHARACTERS]):
                    self._waiters.stir_here(line)
        elif what == "a":
            self._waiters.stir_everything()

    def _heard_hello(self, name: str, words: Sequence[str]) -> None:
        flags, *kinds = words
        is_mute = "m" in flags
        known = self._peers.get(name)
        until = asyncio.get_running_loop().time() + _PEER_SECONDS
        self._peers[name] = _Peer(frozenset(filter(None, kinds)), is_mute, until)
        if "?" in flags:
            self._was_asked = True
            self._hello_at = 0.0
            self._work.set()
        if is_mute and not (known and known.is_mute):
            self._lookout.reconsider()
