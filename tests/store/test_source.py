"""Where the connection string and the password come from, and what is told of them."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from wfe_persistence.database import source_from
from wfe_persistence.redaction import hide, redacted
from wfe_persistence.settings import Settings
from wfe_persistence.store.postgres.source import SourceError

CANARY = "s3cret-canary"

MALFORMED = [
    f"postgresql://u:{CANARY}@h:999999/x",
    f"postgresql://u:{CANARY}@h:port/x",
    f"postgresql://u:{CANARY}%zz@h/x",
    f"postgresql://u:a@{CANARY}@h/x",
    f"postgresql://u:a%40{CANARY}@b@h/x",
    f"postgresql://u:a/{CANARY}@h/x",
    f"postgresql://u:1234/%40{CANARY}@h/x",
    f"postgresql://u:{CANARY}/a@h/x",
    f"postgresql://u:{CANARY}@h/x?nonsense=1",
    f"postgresql://u:{CANARY}@[::1/x",
    f"postgresql://u:{CANARY}@h/x?connect_timeout=soon",
    f"postgresql://h/x?password={CANARY}&{CANARY}",
    f"host=h password=a {CANARY}",
    f"host=h password='{CANARY}",
    f"host=h dbname=postgresql://u:{CANARY}@h/x",
    f"host=h passwrd={CANARY}",
    f"{CANARY}",
    f"postgresql://u:{CANARY}\udcff@h/x",
]


@pytest.mark.parametrize("url", MALFORMED)
def test_a_malformed_connection_string_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"^db-url: ") as caught:
        source_from(Settings(db_url=url)).check()
    assert CANARY not in repr(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user%40host:pa%2Fss%40@h:5432,i:5433/x",
        "postgresql://u:pa?ss@h/x",
        "postgresql:///x?host=/tmp",
        "host=@abstract dbname=a@b user=c@d password='e@f/g'",
        "postgresql://h/a%40b",
        "service=none_needed",
        "postgresql://u@h/x?options=-c%20a%3D@",
    ],
)
def test_unusual_connection_strings_are_taken(url: str) -> None:
    source_from(Settings(db_url=url)).check()


def test_text_is_utf8_whatever_the_string_says() -> None:
    source = source_from(Settings(db_url="postgresql://h/x?client_encoding=latin1"))
    assert conninfo_to_dict(source._conninfo(source.url, None))["client_encoding"] == "utf8"


async def test_files_are_read_again_for_each_connection(tmp_path: Path) -> None:
    url, password = tmp_path / "url", tmp_path / "password"
    url.write_text("postgresql://u:old@h/first\n")
    password.write_text("one\r\n")
    source = source_from(Settings(db_url_file=url, db_password_file=password))
    found = conninfo_to_dict(await source.conninfo())
    assert (found["dbname"], found["password"]) == ("first", "one")
    url.write_text("postgresql://u@h/second")
    password.write_text(" two words ")
    found = conninfo_to_dict(await source.conninfo())
    assert (found["dbname"], found["password"]) == ("second", " two words ")
    password.unlink()
    with pytest.raises(SourceError, match=r"db-password-file: .*No such file"):
        await source.conninfo()


async def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"postgresql://h/piped\n")
    os.close(writing)
    source = source_from(Settings(db_url_file=Path(f"/dev/fd/{reading}")))
    for _ in range(2):
        assert conninfo_to_dict(await source.conninfo())["dbname"] == "piped"
    os.close(reading)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"postgresql://h/\0", "null byte"),
        (b"x" * 70_000, "more than 65536 bytes"),
        (f"postgresql://u:{CANARY}@h:port/x".encode(), "port"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "url"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        source_from(Settings(db_url_file=file)).check()
    assert str(caught.value).startswith(f"db-url-file: {file}: ")
    assert CANARY not in str(caught.value)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Is a directory"):
        source_from(Settings(db_url_file=tmp_path)).check()


async def test_a_command_prints_the_password_anew_each_time(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.touch()
    program = (
        f"p = open({str(counter)!r}, 'r+'); n = len(p.read()); p.write('x'); print('token', n)"
    )
    command = shlex.join([sys.executable, "-c", program])
    source = source_from(Settings(db_url="postgresql://h/x", db_password_command=command))
    for n in range(3):
        assert conninfo_to_dict(await source.conninfo())["password"] == f"token {n}"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/does/not/exist", "db-password-command: /does/not/exist: No such file"),
        ("sh -c 'echo denied >&2; exit 3'", "sh: exit status 3: denied"),
        ("true", "true: is empty"),
    ],
)
async def test_a_command_that_fails_says_why(command: str, said: str) -> None:
    source = source_from(Settings(db_url="postgresql://h/x", db_password_command=command))
    with pytest.raises(psycopg.OperationalError, match=said):
        await source.conninfo()


@pytest.mark.parametrize("command", ["'", "   "])
def test_a_command_that_is_none_is_refused(command: str) -> None:
    with pytest.raises(ValueError, match="db-password-command: "):
        source_from(Settings(db_url="postgresql://h/x", db_password_command=command))


@pytest.mark.parametrize(
    "settings",
    [
        {"db_url": "postgresql://h/x", "db_url_file": Path("x")},
        {
            "db_url": "postgresql://h/x",
            "db_password_file": Path("x"),
            "db_password_command": "x",
        },
    ],
)
def test_two_answers_to_one_question_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="can't be set together"):
        Settings(**settings)  # type: ignore[arg-type]


def test_a_password_without_a_database_is_refused() -> None:
    with pytest.raises(ValueError, match="need db-url"):
        source_from(Settings(db_password_file=Path("x")))


@pytest.mark.parametrize(
    "text",
    [
        f"could not connect to postgresql://u:{CANARY}@h/x",
        f"host=h password={CANARY} user=u",
        f"host=h sslpassword = '{CANARY} \\' {CANARY}' user=u",
        f"?user=u&password={CANARY}&x=y",
    ],
)
def test_what_looks_like_a_password_is_taken_out(text: str) -> None:
    assert CANARY not in redacted(text)
    assert "***" in redacted(text)


@pytest.mark.parametrize(
    "form", ["pa ss/wörd@1", "pa%20ss%2Fw%C3%B6rd%401", "pa+ss%2Fw%C3%B6rd%401"]
)
def test_a_password_is_taken_out_in_every_form(form: str) -> None:
    source_from(Settings(db_url="postgresql://u:pa%20ss%2Fw%C3%B6rd%401@h/x")).check()
    assert redacted(f"x{form}y") == "x***y"


def test_a_short_password_leaves_other_words_alone() -> None:
    hide("ab9")
    assert redacted("the password ab9 is not ab95") == "the password *** is not ab95"


def test_settings_do_not_show_the_connection_string() -> None:
    assert CANARY not in repr(Settings(db_url=f"postgresql://u:{CANARY}@h/x"))
