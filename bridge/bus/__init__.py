"""TODO: the face of bridge/bus."""
