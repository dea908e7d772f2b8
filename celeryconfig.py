"""Celery configuration of the example application ``bridge``: plain Celery names and ``bridge_*`` names.

Settings that differ between machines are read from the environment: ``REDIS_URL`` for bus, broker and results, or
``BRIDGE_REDIS_URL``, ``CELERY_BROKER_URL`` and ``CELERY_RESULT_BACKEND`` for each of them separately.
"""

import os

from kombu import Queue

_redis_url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

broker_url = os.environ.get("CELERY_BROKER_URL", _redis_url)
result_backend = os.environ.get("CELERY_RESULT_BACKEND", _redis_url)
result_expires = 24 * 3600

imports = ("tasks",)
task_queues = (Queue("celery", routing_key="celery"), Queue("index", routing_key="index"))

# Anyone who can write to a queue must not be able to run code: JSON only, never pickle.
task_serializer = result_serializer = "json"
accept_content = ["json"]

# A message is acknowledged when its task has ended, and redelivered if its worker crashes.
task_acks_late = True
task_reject_on_worker_lost = True
worker_prefetch_multiplier = 1
worker_cancel_long_running_tasks_on_connection_loss = True

# A Redis broker redelivers messages that are not acknowledged within visibility_timeout, which must therefore exceed
# the longest task.
task_time_limit = 30 * 60
task_soft_time_limit = 25 * 60
broker_transport_options = {
    "visibility_timeout": 3600,
    "socket_timeout": 10.0,
    "socket_connect_timeout": 3.0,
    "socket_keepalive": True,
}
broker_connection_retry_on_startup = True
broker_connection_max_retries = None

# For Flower. task_send_sent_event stays off, because every dispatch would then take Celery's slower path.
worker_send_task_events = True
task_track_started = True

# The bus. Each bridge_* name can also be set as BRIDGE_* in the environment, which takes precedence.
bridge_routes = {"dream.analysed": {"priority": 3}}
