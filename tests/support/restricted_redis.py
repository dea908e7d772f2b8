"""A Redis on which each kind of program has its own user, with the permissions that ``bus acl`` prints for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from redis import Redis

from bridge import BridgeSettings
from bridge.cli import bus as bus_command
from bridge.testing.redis_server import RedisServer
from tests.support.recorder import Recorder, Words, name_of

#: Commands that MONITOR does not report.
_UNHEARD: dict[str, list[Words]] = {"config|get": [(b"CONFIG", b"GET", b"append*")]}


@dataclass
class RestrictedRedis:
    """Bus, broker and results on one server, with their own prefix.

    Arguments:
        app: The application whose handlers are registered.
        admin: A client with one connection and all permissions.
    """

    server: RedisServer
    prefix: str
    app: Celery
    admin: Redis

    def url(self, user: str = "") -> str:
        return self.server.url.replace("//", f"//{user}:s3cret@") if user else self.server.url

    def settings(self, user: str = "", **changes: Any) -> BridgeSettings:
        given = {"redis_url": self.url(user), "channel_prefix": self.prefix, "group": "tests", "block_ms": 100}
        return BridgeSettings.load(**given | changes)

    def invoke(self, *arguments: str, user: str = "", expect: int = 0, broker: str = "", **changes: Any) -> Result:
        """Run ``bus ...`` in this process as a user, with settings."""
        with self.as_user(user, {f"BRIDGE_{name.upper()}": str(value) for name, value in changes.items()}):
            self.app.conf.broker_url = broker or self.url(user)
            result = CliRunner().invoke(bus_command, arguments, obj=SimpleNamespace(app=self.app))
        assert result.exit_code == expect, result.output
        assert "s3cret" not in result.output
        return result

    @contextmanager
    def as_user(self, user: str, settings: dict[str, str] | None = None) -> Iterator[None]:
        environment = {"REDIS_URL": self.url(user), "BRIDGE_CHANNEL_PREFIX": self.prefix} | (settings or {})
        self.app.conf.broker_url = self.app.conf.result_backend = self.url(user)
        self.app._local.__dict__.pop("backend", None)  # Celery caches one backend for each thread
        with patch.dict(os.environ, environment):
            yield

    def grant(self, user: str, *arguments: str, **settings: Any) -> list[str]:
        """Create a user from the output of ``bus acl``, ready to log in; return the rules."""
        said = self.invoke("acl", *arguments, "--user", user, "--json", **settings)
        (line,) = map(json.loads, said.stdout.splitlines())
        assert line["for"][0] == "bus"
        self.set_rules(line["user"], line["rules"])
        self.admin.acl_log_reset()
        return list(line["rules"])

    def set_rules(self, user: str, rules: Sequence[str]) -> None:
        self.admin.execute_command("ACL", "SETUSER", user, *(word for rule in rules for word in rule.split(" ")))
        self.admin.execute_command("ACL", "SETUSER", user, ">s3cret")

    def refusals(self) -> set[str]:
        """Return what this server has refused to any user: commands, keys, channels and logins."""
        entries: Any = self.admin.acl_log()
        return {f"{one['username']}: {one['reason']} {one['object']} ({one['context']})" for one in entries}

    @contextmanager
    def recorded(self) -> Iterator[list[Words]]:
        """Record all commands during a ``with`` block. The server's script cache is empty at the start."""
        self.admin.script_flush()
        with Recorder(self.admin) as recorder:
            yield recorder.commands

    def judge(self, rules: Sequence[str], commands: Sequence[Words]) -> None:
        """Fail unless *rules* allow all of *commands*, and no permission of *rules* is superfluous."""
        assert self.refused(rules, commands) == []
        if found := self.superfluous(rules, commands):
            pytest.fail("\n".join(found))

    def refused(self, rules: Sequence[str], commands: Sequence[Words]) -> list[Words]:
        """Return those of *commands* that *rules* do not allow. They are tested with ACL DRYRUN and not executed."""
        self.admin.acl_deluser("asked")
        self.set_rules("asked", rules)
        with self.admin.pipeline(transaction=False) as pipe:
            for words in commands:
                pipe.execute_command("ACL", "DRYRUN", "asked", *words)
            answers = pipe.execute(raise_on_error=False)
        return [words for words, answer in zip(commands, answers, strict=True) if answer != b"OK"]

    def superfluous(self, rules: Sequence[str], commands: Sequence[Words]) -> list[str]:
        """Return the parts of *rules* that could be removed without any of *commands* being refused."""
        heard: dict[str, dict[Words, None]] = {}
        for words in commands:
            heard.setdefault(name_of(words), {})[words] = None
        heard |= {name: dict.fromkeys(some) for name, some in _UNHEARD.items()}
        found = []
        for names, what, fewer in _weaker(rules):
            asked = [words for name in names for words in heard.get(name, ())]
            if not self.refused(fewer, asked):
                found.append(what)
        return found


def _weaker(rules: Sequence[str]) -> Iterator[tuple[list[str], str, list[str]]]:
    """Yield each permission in *rules*: the commands that it concerns, the permission, and *rules* without it."""
    for place, rule in enumerate(rules):
        words = rule.strip("()").split(" ")
        commands = [word[1:] for word in words if word[0] == "+"]
        for word in words if commands else ():
            kinds = {"~": [[], ["%R" + word], ["%W" + word]]}.get(word[0], [[]])
            for instead in kinds:
                left = [one for other in words for one in (instead if other == word else [other])]
                weaker = [f"({' '.join(left)})"] if rule[0] == "(" and left else left
                fewer = [*rules[:place], *weaker, *rules[place + 1 :]]
                names = [word[1:]] if word[0] == "+" else commands
                yield names, f"{word} in {rule}" + (f", for {instead[0]}" if instead else ""), fewer
