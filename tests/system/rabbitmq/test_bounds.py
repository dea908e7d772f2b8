"""RabbitMQ is short of memory, hangs, or is reached at another address: every wait is limited."""

from __future__ import annotations

import ssl
import time
from collections import Counter

import pytest
from amqp.exceptions import AccessRefused
from celery import Celery
from kombu.exceptions import OperationalError

from bridge import BridgeSettings
from bridge.broker import connection as broker
from bridge.broker.confirms import Blocked
from bridge.broker.outbox import Outbox
from tests.support.proxy import Proxy
from tests.support.servers.certificates import Certificates
from tests.support.servers.rabbitmq import RabbitNode
from tests.system.rabbitmq.messages import prepared
from tests.system.rabbitmq.virtual_host import Rabbit


def test_several_addresses(rabbit: Rabbit, settings: BridgeSettings) -> None:
    """All addresses are tried, and the first one that responds is used, without an error in between."""
    dead = "amqp://guest:guest@127.0.0.1:1//"
    with Celery("tests", broker=f"{dead};{dead};{rabbit.url}", set_as_current=False) as app:
        app.finalize()
        outbox = Outbox(app, settings)
        before = time.monotonic()
        assert outbox.send(prepared(outbox)) == []
        assert time.monotonic() - before < 3
        assert rabbit.length() == 1
        outbox.close()
    with Celery("tests", broker=f"{dead};{dead}", set_as_current=False) as app:
        app.finalize()
        before = time.monotonic()
        with pytest.raises(OperationalError):
            Outbox(app, settings).send(prepared(Outbox(app, settings)))
        assert time.monotonic() - before < 3


def test_over_tls(
    node: RabbitNode,
    rabbit: Rabbit,
    rabbit_certificates: Certificates,
    settings: BridgeSettings,
) -> None:
    """With TLS, messages are confirmed and waits are limited as without; an untrusted certificate is reported."""
    address = rabbit.url_at(node.tls_port).replace("amqp:", "amqps:")
    tls = {
        "ca_certs": str(rabbit_certificates.authority),
        "cert_reqs": ssl.CERT_REQUIRED,
        "server_hostname": "127.0.0.1",
    }
    with Celery("tests", broker=address, broker_use_ssl=tls, set_as_current=False) as app:
        app.finalize()
        outbox = Outbox(app, settings, rabbitmq_timeout_s=1.0)
        assert outbox.send(prepared(outbox, count=1000)) == []
        assert rabbit.length() == 1000
        node.freeze()
        before = time.monotonic()
        with pytest.raises(OperationalError, match="did not confirm"):
            outbox.send(prepared(outbox))
        assert time.monotonic() - before < 4
        node.thaw()
        app.conf.broker_use_ssl = tls | {"ca_certs": str(rabbit_certificates.other_authority)}
        with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
            outbox.send(prepared(outbox))


def test_a_broker_short_of_memory_gets_nothing_twice(node: RabbitNode, outbox: Outbox, rabbit: Rabbit) -> None:
    """An alarm during dispatch is noticed within seconds; afterwards each message is queued once."""
    assert outbox.send(prepared(outbox)) == []
    rabbit.take()
    node.alarm(on=True)
    messages = prepared(outbox, count=300)
    for _ in range(3):
        before = time.monotonic()
        with pytest.raises(Blocked, match="short of memory or disk"):
            outbox.send(messages)
        assert time.monotonic() - before < 3
    with pytest.raises(Blocked):  # a probe gets the same error
        broker.probe(outbox._app)
    node.alarm(on=False)
    broker.probe(outbox._app)
    assert outbox.send(messages) == []
    assert rabbit.tasks() == Counter({f"t.plain e{number}": 1 for number in range(300)})


def test_a_broker_that_hangs_fails_in_time(
    node: RabbitNode, rabbit_app: Celery, settings: BridgeSettings, rabbit: Rabbit
) -> None:
    """Sending, queries and closing are limited in time while the broker hangs; afterwards everything works again."""
    outbox = Outbox(rabbit_app, settings, rabbitmq_timeout_s=1.0)
    assert outbox.send(prepared(outbox)) == []
    node.freeze()
    with pytest.raises(OperationalError, match="did not confirm 5 messages within 1 s"):
        outbox.send(prepared(outbox, count=5))
    before = time.monotonic()
    with pytest.raises(OperationalError, match="timed out"):
        broker.probe(outbox._app)
    assert time.monotonic() - before < 4
    node.thaw()
    assert outbox.waiting("celery") >= 1
    node.freeze()
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        outbox.waiting("celery")
    outbox.close()
    assert time.monotonic() - before < 3
    node.thaw()
    assert outbox.send(prepared(outbox, count=5)) == []
    assert set(rabbit.tasks()) == {f"t.plain e{number}" for number in range(5)}
    outbox.close()


def test_a_broker_that_hangs_in_the_middle_of_an_answer(
    node: RabbitNode, settings: BridgeSettings, rabbit: Rabbit
) -> None:
    """The wait for the rest of a partial confirm is limited in time and uses little processor time."""
    with Proxy(node.port) as proxy, Celery("tests", broker=rabbit.url_at(proxy.port), set_as_current=False) as app:
        app.finalize()
        outbox = Outbox(app, settings, rabbitmq_timeout_s=1.0)
        assert outbox.send(prepared(outbox)) == []
        proxy.dribble(9, 20)  # the header of a frame, and only a part of the rest
        before, used_before = time.monotonic(), time.process_time()
        with pytest.raises(OperationalError, match="did not confirm"):
            outbox.send(prepared(outbox, count=3000))
        assert time.monotonic() - before < 5
        assert time.process_time() - used_before < 3
        proxy.heal()
        assert outbox.send(prepared(outbox)) == []
        outbox.close()


def test_a_look_without_rights(node: RabbitNode, rabbit: Rabbit) -> None:
    """A user without permission to publish to the default exchange can still check that RabbitMQ is running."""
    none = ", ".join(['<<"">>'] * 4)
    node.evaluate(
        'rabbit_auth_backend_internal:add_user(<<"poor">>, <<"poor">>, <<"tests">>),'
        f'rabbit_auth_backend_internal:set_permissions(<<"poor">>, <<"{rabbit.name}">>, {none}).'
    )
    address = rabbit.url.replace("guest:guest", "poor:poor")
    with Celery("tests", broker=address, set_as_current=False) as app:
        broker.probe(app)
    wrong = Celery("tests", broker=address.replace("poor:poor", "poor:wrong"), set_as_current=False)
    with wrong as app, pytest.raises(AccessRefused):
        broker.probe(app)
