"""The TypeScript example of docs/explanation/signing.md."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from redis import Redis

from bridge import BridgeSettings
from tests.support import ROOT
from tests.support.apps import StartSubscriber
from tests.support.outside import SECRETS, Outside
from tests.support.queues import Queues
from tests.support.requirements import program
from tests.support.waiting import eventually
from tests.support.walkthrough import texts_of


@pytest.fixture
def outside(client: Redis, settings: BridgeSettings) -> Outside:
    return Outside(client, settings)


def test_the_typescript_example_is_heard(
    register_handlers, start_subscriber: StartSubscriber, outside: Outside, queues: Queues, tmp_path: Path
) -> None:
    """A subscriber accepts the event of the example, and rejects it if it is signed with another secret."""
    node = program("node")
    (code,) = texts_of((ROOT / "docs" / "explanation" / "signing.md").read_text(), "ts")
    script = tmp_path / "publish.mjs"
    script.write_text(code)  # it contains no types, which Node would have to remove
    register_handlers("t.exact")
    start_subscriber(signing_keys=SECRETS, require_signature=["*"])
    address = outside.client.get_connection_kwargs()
    ids = []
    for secret in (SECRETS["new"].get_secret_value(), "a secret that nobody here has: " * 2):
        command = [node, str(script), address["host"], str(address["port"]), outside.keys.prefix, "new", secret]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        ids.append(done.stdout.strip())
    eventually(
        lambda: queues.length() == 1 and len(outside.letters()) == 1, "one event is accepted and the other rejected"
    )
    assert list(queues.tasks()) == [f"t.exact dream.created {ids[0]}"]
    (letter,) = outside.letters()
    assert letter.detail.startswith("signature: key 'new' has not signed this")
    assert ids[1].encode() in letter.raw
