"""The permissions of ``bus subscribe``, which dispatches events and sends lost tasks again."""

from __future__ import annotations

from tests.integration.acl.subscribing import NOT_GRANTED, SOON, prepare, subscribe
from tests.support.restricted_redis import RestrictedRedis


def test_a_subscriber_has_what_it_needs_and_no_more(restricted_redis: RestrictedRedis) -> None:
    """Only CONFIG GET is refused, and each permission is needed: without it, some command would be refused."""
    rules = restricted_redis.grant("shop", "subscriber", **SOON)
    prepare(restricted_redis)
    with restricted_redis.recorded() as commands:
        subscribe(restricted_redis, "shop", restricted_redis.admin)
    assert {text for text in restricted_redis.refusals() if text.split()[2] not in NOT_GRANTED} == set()
    wanted = [words for words in commands if words[0] != b"CONFIG"]
    restricted_redis.judge(rules, wanted)
