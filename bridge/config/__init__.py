"""Settings: one reader for arguments, the environment and Celery's configuration.

A wrong setting fails here, when a program starts, with an error that names the setting and the remedy. Any part
above ``events`` may use this part. It reads files (TLS certificates) and opens no connection.
"""

from bridge.config.address import Address
from bridge.config.celery_config import (
    installed_settings,
    is_fallback,
    is_pickle,
    refuse_pickled_tasks,
    remember_installed,
)
from bridge.config.environment import bridge_variables, hidden_address
from bridge.config.redis_broker import endpoints, has_broker, is_redis, service_of
from bridge.config.settings import BATCH_BYTES, BridgeSettings
from bridge.config.sources import refuse_unknown
from bridge.config.transport_defaults import REDIS_TRANSPORT, install_transport_defaults, set_transport_defaults

__all__ = [
    "BATCH_BYTES",
    "REDIS_TRANSPORT",
    "Address",
    "BridgeSettings",
    "bridge_variables",
    "endpoints",
    "has_broker",
    "hidden_address",
    "install_transport_defaults",
    "installed_settings",
    "is_fallback",
    "is_pickle",
    "is_redis",
    "refuse_pickled_tasks",
    "refuse_unknown",
    "remember_installed",
    "service_of",
    "set_transport_defaults",
]
