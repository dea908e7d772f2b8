"""TODO: the face of bridge/events."""
