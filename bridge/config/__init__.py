"""TODO: the face of bridge/config."""
