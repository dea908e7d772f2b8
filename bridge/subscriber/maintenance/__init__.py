"""TODO: the face of bridge/subscriber/maintenance."""
