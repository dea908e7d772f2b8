"""TODO: the face of bridge/redis."""
