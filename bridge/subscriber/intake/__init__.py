"""TODO: the face of bridge/subscriber/intake."""
