"""The commands of ``celery -A APP bus``, one module each, imported when they are called."""
