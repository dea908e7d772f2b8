"""TODO: the face of bridge/subscriber/dispatch."""
