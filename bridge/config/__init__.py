"""Settings: one reader for arguments, the environment and Celery's configuration.

A wrong setting fails here, when a program starts, with an error that names the setting and the remedy. Any part
above ``events`` may use this part. It reads files (TLS certificates) and opens no connection.
"""

from bridge.config.address import Address
from bridge.config.celery_config import is_pickle, refuse_pickled_tasks
from bridge.config.environment import bridge_variables, hidden_address
from bridge.config.settings import BATCH_BYTES, BridgeSettings

__all__ = [
    "BATCH_BYTES",
    "Address",
    "BridgeSettings",
    "bridge_variables",
    "hidden_address",
    "is_pickle",
    "refuse_pickled_tasks",
]
