"""Common behaviour of all commands: help, cheap imports, and errors if Redis is unavailable."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import click
import pytest
from celery import Celery
from redis import Redis

from bridge.cli import COMMANDS, bus
from bridge.testing.redis_server import RedisServer
from tests.support.apps import Invoke

REDIS_COMMANDS = [
    "publish a.b",
    "get e",
    "tail",
    "tail --since 1h",
    "trace e",
    "status",
    "dead list",
    "dead show 1-1",
    "dead retry --all",
    "dead purge --all",
    "replay --all",
    "groups list",
    "groups delete x --yes",
]


def commands(group: click.Group = bus, path: str = "bus") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def test_the_list_of_commands_has_their_own_words() -> None:
    """The list of commands, which is stored separately for a quick start, has the short help of each command."""
    listed = {f"bus {name}": text for section in COMMANDS.values() for name, text in section}
    assert listed == {path: one.get_short_help_str(200) for path, one in commands() if path in listed}


@pytest.mark.parametrize(
    ("path", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_help_with_examples(path: str, command: click.Command) -> None:
    """The help of a command says what it does and has an example; for a group, its commands do."""
    assert command.help
    assert f"celery -A APP {path}" in command.help or isinstance(command, click.Group)


def test_help_documents_the_exit_codes(invoke: Invoke) -> None:
    """The list of commands has sections and explains the exit codes."""
    output = invoke("--help").output
    assert output.index("Events:") < output.index("Repair:") < output.index("Exit codes:")
    assert "  3    Redis or the broker is unreachable" in output


def test_a_misspelt_command_is_guessed(invoke: Invoke) -> None:
    """For ``bus tial``, the error suggests ``tail``."""
    assert "tail" in invoke("tial", expect=2).output


# Unavailable Redis


@pytest.mark.parametrize("command", REDIS_COMMANDS)
def test_a_server_that_is_down_is_named_soon(invoke: Invoke, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command ends soon with status 3 and one line: address, reason and advice, without the password."""
    monkeypatch.setenv("REDIS_URL", "redis://:s3cret@127.0.0.1:1/0")
    begun_s = time.monotonic()
    output = invoke(*command.split(), expect=3).output
    assert time.monotonic() - begun_s < 3
    assert output.startswith("Error: Redis at redis://127.0.0.1:1/0 does not answer: ")
    assert output.endswith("Check that it is running, and the address in REDIS_URL.\n")
    assert output.count("\n") == 1
    assert "s3cret" not in output


def test_a_broker_as_the_bus_that_is_down(invoke: Invoke, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the address is not from the environment, the advice names where else it may be set, as in the broker."""
    monkeypatch.delenv("REDIS_URL")
    app.conf.broker_url = "redis://:s3cret@127.0.0.1:1/0"
    output = invoke("status", expect=3).output
    assert output.startswith("Error: Redis at redis://127.0.0.1:1/0 does not answer: ")
    assert output.endswith("the address in bridge_redis_url, bridge.install() or broker_url.\n")


def test_a_server_that_hangs_is_named_soon(invoke: Invoke, proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts connections but does not reply is reported soon."""
    proxy.blackhole()
    monkeypatch.setenv("REDIS_URL", proxy.url)
    begun_s = time.monotonic()
    assert "does not answer" in invoke("groups", "list", expect=3).output
    assert time.monotonic() - begun_s < 3


def test_another_server_at_the_address_is_named(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A web server at the address is reported as not being Redis."""

    def answer() -> None:
        with listener.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        output = invoke("groups", "list", expect=3).output
        thread.join(5)
    assert "is not a Redis server" in output
    assert "Check the address in REDIS_URL." in output


@pytest.fixture(scope="module")
def locked() -> Iterator[RedisServer]:
    """A Redis with a password, and a user with few permissions."""
    with RedisServer(arguments=["--requirepass", "right"]) as server:
        with Redis(port=server.port, password="right") as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+@connection")
        yield server


@pytest.mark.parametrize(("login", "says"), [("", "Authentication required"), (":wr0ng@", "invalid username-password")])
@pytest.mark.parametrize("command", ["publish a.b", "tail", "groups list"])
def test_a_wrong_password_is_named(
    invoke: Invoke, locked: RedisServer, login: str, says: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a missing or wrong password the status is 3, and the error names the place to set it."""
    monkeypatch.setenv("BRIDGE_REDIS_URL", f"redis://{login}127.0.0.1:{locked.port}/0")
    output = invoke(*command.split(), expect=3).output
    assert f"refused the login: {says}" in output
    assert "Check user and password in BRIDGE_REDIS_URL" in output
    assert "wr0ng" not in output


@pytest.mark.parametrize("command", ["publish a.b", "tail"])
def test_missing_rights_are_named(
    invoke: Invoke, locked: RedisServer, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an ACL forbids a command, the status is 3, and the error explains what to grant."""
    monkeypatch.setenv("REDIS_URL", f"redis://reader:pw@127.0.0.1:{locked.port}/0")
    assert "ACL SETUSER" in invoke(*command.split(), expect=3).output


def test_wrong_settings_are_wrong_usage(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable ends with status 2, and the error suggests the right name."""
    monkeypatch.setenv("BRIDGE_GROUPP", "x")
    assert "did you mean BRIDGE_GROUP?" in invoke("groups", "list", expect=2).output
