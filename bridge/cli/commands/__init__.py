"""The commands of ``celery -A APP bus``, one module each; loaded when they are called."""
