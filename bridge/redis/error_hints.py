"""What an error of Redis means and what to do about it, for people. Nothing of an address is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from redis.exceptions import AskError, MovedError, NoPermissionError, ResponseError

#: Texts that an error has, all of them, to what to do about it; the first that fits. ``{url}``: where the address is.
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    # What a client finds wrong with the server's certificate
    (("certificate has expired",), "Renew the certificate of the server."),
    (("certificate is not yet valid",), "Check the clock here, and the certificate of the server."),
    (("is not valid for",), "The certificate of the server has other names: write one of them in {url}, or renew it."),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "No authority that is trusted here issued it: name its file with ssl_ca_certs=... in {url}.",
    ),
    # What a server finds wrong with the client's
    (("CERTIFICATE_EXPIRED",), "Renew the certificate that ssl_certfile=... in {url} names."),
    (
        ("ALERT_UNKNOWN_CA",),
        "The server does not trust who issued the certificate that ssl_certfile=... in {url} names.",
    ),
    (
        ("CERTIFICATE_REQUIRED",),
        "The server wants a certificate: add ssl_certfile=... and ssl_keyfile=... to {url}.",
    ),
    (
        ("EOF occurred in violation of protocol",),
        "The server may want a certificate: add ssl_certfile=... and ssl_keyfile=... to {url}.",
    ),
    # TLS at one end alone
    (("WRONG_VERSION_NUMBER",), "It does not speak TLS: write redis for rediss in {url}."),
    (("record layer failure",), "It does not speak TLS: write redis for rediss in {url}."),
    (("handshake operation timed out",), "It takes connections, and no TLS: write redis for rediss in {url}."),
    (("Connection reset by peer",), "Check that it runs; if it wants TLS, write rediss for redis in {url}."),
    # Sentinels
    (("no Sentinel", "watches no"), "Check the name of the service, at the end of {url}."),
    (("no Sentinel", "uthentication"), "Check sentinel_password=... and sentinel_username=... in {url}."),
    (("no Sentinel", "username-password"), "Check sentinel_password=... and sentinel_username=... in {url}."),
    (("no Sentinel", "no permissions"), "Allow the user of the Sentinels +sentinel|masters."),
    (("no Sentinel", "unknown command"), "Name the Sentinels in {url}, not the servers that they watch."),
    (("no Sentinel",), "Check that the Sentinels run, that they see the primary, and their addresses in {url}."),
    # One kind of server where another was meant
    (("Cluster mode is not enabled",), "That is no Redis Cluster: write redis for redis+cluster in {url}."),
    (("hash to the same slot",), "That is a Redis Cluster: write redis+cluster for redis in {url}."),
    # On the way from one server to another
    (
        ("not the primary of these keys: MOVED",),
        "If that stays so, they are keys of your own: begin their names with the channel prefix in braces.",
    ),
    (("during rehashing of slot",), "Its slot is being moved to another server: try again when that is done."),
    (("NOREPLICAS",), "Look after its replicas: fewer follow it than min-replicas-to-write asks for."),
    (
        ("unknown command",),
        "Redis has it from 6.2 on; a Sentinel does not: write redis+sentinel://HOSTS/SERVICE in {url} if it is one.",
    ),
)
#: Missing rights as Redis 7.0 and later tell of them inside a script, where redis-py does not know them.
_REFUSED_IN_SCRIPT = ("The user executing the script can't", "ACL failure in script")
#: Redis names the command at best, and neither key nor channel.
_NO_PERMISSION = (
    "Give this user what bus acl prints for its role, with ACL SETUSER; bus check --role ROLE names what it lacks."
)
#: Where in the source of Python an error of TLS arose, and any error in a script; what a server repeats of a command
#: that it does not know.
_NOISE = re.compile(r" ?\(_ssl\.c:\d+\)| script: \w{40}, on @user_script:\d+|,? with args beginning with:.*", re.DOTALL)


def is_wrong_type(error: object) -> bool:
    """Whether *error*, or a reply of a pipeline, says that a key holds another type of value than was expected."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


def describe_error(error: Exception) -> str:
    """Return what an error says, without what helps nobody, and without the stop at its end."""
    text = _NOISE.sub("", str(error)).rstrip(". ") or type(error).__name__
    # redis-py takes the word away.
    return f"{'MOVED' if isinstance(error, MovedError) else 'ASK'} {text}" if isinstance(error, AskError) else text


def hint_for(error: Exception, url: str = "the address") -> str:
    """Return what to do, in a sentence; empty when the error alone does not tell.

    Arguments:
        url: Where the address of the bus comes from, e.g. ``BRIDGE_REDIS_URL``.
    """
    if isinstance(error, AskError):
        return f"That is a Redis Cluster: write redis+cluster for redis in {url}."
    text = " ".join(_texts(error))
    if isinstance(error, NoPermissionError) or text.startswith(_REFUSED_IN_SCRIPT):
        return _NO_PERMISSION
    return next((what for parts, what in _REMEDIES if all(part in text for part in parts)), "").format(url=url)


def _texts(error: BaseException | None) -> Iterator[str]:
    """Yield what the error says and what those say that caused it, which tells a handshake from a connection."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__
