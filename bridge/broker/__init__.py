"""TODO: the face of bridge/broker."""
