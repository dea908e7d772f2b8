"""Names in the settings that become part of channels, keys and events, and which of them are usable."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from bridge.events import TYPESCRIPT_BUS_SOURCE


def _usable_prefix(prefix: str) -> str:
    if not prefix:
        raise ValueError("must not be empty: the subscription would receive every channel of the server")
    if re.search(r"[{}\s]", prefix):
        raise ValueError("must not contain braces (they select the Redis Cluster slot) or white space")
    return prefix


def _usable_source(source: str) -> str:
    if source == TYPESCRIPT_BUS_SOURCE:
        raise ValueError(f"{TYPESCRIPT_BUS_SOURCE!r} must not be used: the TypeScript bus drops its events")
    return source


def _usable_group(group: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._@-]{1,100}", group):
        raise ValueError("must be 1 to 100 characters of A-Z a-z 0-9 . _ @ -, because it becomes part of key names")
    return group


#: Prefix of channels and keys.
ChannelPrefix = Annotated[str, AfterValidator(_usable_prefix)]
#: Name of a publisher.
SourceName = Annotated[str, AfterValidator(_usable_source)]
#: Name of a consumer group.
GroupName = Annotated[str, AfterValidator(_usable_group)]
