"""TODO: the face of bridge/subscriber/monitoring."""
