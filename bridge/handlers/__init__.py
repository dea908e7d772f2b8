"""TODO: the face of bridge/handlers."""
