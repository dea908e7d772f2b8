"""What an error of Redis means and what to do about it, for people. Addresses are never part of these texts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from redis.exceptions import AskError, MovedError, NoPermissionError

#: Texts that all have to be in an error, and what to do about it; the first match counts. ``{url}`` is the name of the
#: setting with the address.
_HINTS: tuple[tuple[tuple[str, ...], str], ...] = (
    # The client rejects the certificate of the server
    (("certificate has expired",), "Renew the certificate of the server."),
    (("certificate is not yet valid",), "Check the clock of this host, and the certificate of the server."),
    (("is not valid for",), "The certificate of the server has other names: use one of them in {url}, or renew it."),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "It was not issued by a CA that is trusted here: name the file of its CA with ssl_ca_certs=... in {url}.",
    ),
    # The server rejects the certificate of the client
    (("CERTIFICATE_EXPIRED",), "Renew the certificate that ssl_certfile=... in {url} names."),
    (
        ("ALERT_UNKNOWN_CA",),
        "The server does not trust the CA of the certificate that ssl_certfile=... in {url} names.",
    ),
    (
        ("CERTIFICATE_REQUIRED",),
        "The server requires a certificate: add ssl_certfile=... and ssl_keyfile=... to {url}.",
    ),
    (
        ("EOF occurred in violation of protocol",),
        "The server may require a certificate: add ssl_certfile=... and ssl_keyfile=... to {url}.",
    ),
    # Only one side uses TLS
    (("WRONG_VERSION_NUMBER",), "The server does not use TLS: write redis instead of rediss in {url}."),
    (("record layer failure",), "The server does not use TLS: write redis instead of rediss in {url}."),
    (
        ("handshake operation timed out",),
        "The server accepts connections, but not with TLS: write redis instead of rediss in {url}.",
    ),
    (
        ("Connection reset by peer",),
        "Check that it is running. If it requires TLS, write rediss instead of redis in {url}.",
    ),
    # Sentinels
    (("no Sentinel", "does not watch"), "Check the name of the service, at the end of {url}."),
    (("no Sentinel", "uthentication"), "Check sentinel_password=... and sentinel_username=... in {url}."),
    (("no Sentinel", "username-password"), "Check sentinel_password=... and sentinel_username=... in {url}."),
    (("no Sentinel", "no permissions"), "Allow the user of the Sentinels +sentinel|masters."),
    (
        ("no Sentinel", "unknown command"),
        "Put the addresses of the Sentinels in {url}, not those of the servers that they watch.",
    ),
    (("no Sentinel",), "Check that the Sentinels run and reach the primary, and their addresses in {url}."),
    # Another kind of server than the address says
    (
        ("Cluster mode is not enabled",),
        "This server is not a Redis Cluster: write redis instead of redis+cluster in {url}.",
    ),
    (
        ("hash to the same slot",),
        "This server is part of a Redis Cluster: write redis+cluster instead of redis in {url}.",
    ),
    # Keys that are on another server, or on their way to it
    (
        ("not the primary of these keys: MOVED",),
        "If this continues, they are keys of your application: begin their names with the channel prefix in braces.",
    ),
    (("during rehashing of slot",), "The slot is being moved to another server: try again when this is done."),
    (
        ("not loaded", "not allowed to load"),
        "Start a subscriber of this version: it loads the scripts of publishers. Or allow this user +script|load.",
    ),
    (
        ("exhausted the last possible ID",),
        "A program has written the last possible id to the journal: start a subscriber, which repairs it.",
    ),
    (("NOREPLICAS",), "Check its replicas: fewer of them follow it than min-replicas-to-write requires."),
    (("MISCONF",), "Check the log and the disk of Redis: it cannot save its data, and accepts no write until it can."),
    (("BUSY Redis",), "A script of another client blocks Redis: wait for its end, or stop it with SCRIPT KILL."),
    (
        ("unknown command",),
        "Redis has this command since 6.2. A Sentinel does not have it: for Sentinels, write "
        "redis+sentinel://HOSTS/SERVICE in {url}.",
    ),
)
#: Errors of missing permissions inside a script, from Redis 7.0 on, which redis-py does not recognise.
_REFUSED_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
#: The error of Redis names the command, but not the key or the channel.
_NO_PERMISSION = (
    "Give this user the permissions that bus acl prints for its role, with ACL SETUSER; "
    "bus check --role ROLE lists the missing ones."
)
#: Parts of errors that help nobody: the place in the source of Python or in a script, and the arguments of an unknown
#: command.
_NOISE = re.compile(r" ?\(_ssl\.c:\d+\)| script: \w{40}, on @user_script:\d+|,? with args beginning with:.*", re.DOTALL)


def describe_error(error: BaseException) -> str:
    """Return the text of an error, without the parts that help nobody, and without a full stop."""
    text = _NOISE.sub("", str(error)).rstrip(". ") or type(error).__name__
    # redis-py removes this word.
    return f"{'MOVED' if isinstance(error, MovedError) else 'ASK'} {text}" if isinstance(error, AskError) else text


def hint_for(error: BaseException, url: str = "the address") -> str:
    """Return what to do about an error, as one or two sentences; empty if this does not follow from the error.

    Arguments:
        url: The setting with the address of the bus, such as ``BRIDGE_REDIS_URL``.
    """
    if isinstance(error, AskError):
        return f"This server is part of a Redis Cluster: write redis+cluster instead of redis in {url}."
    text = " ".join(_texts(error))
    if isinstance(error, NoPermissionError) or any(part in text for part in _REFUSED_IN_SCRIPT):
        return _NO_PERMISSION
    return next((hint for parts, hint in _HINTS if all(part in text for part in parts)), "").format(url=url)


def _texts(error: BaseException | None) -> Iterator[str]:
    """Yield the texts of the error and of its causes: only a cause shows that a TLS handshake failed."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__
