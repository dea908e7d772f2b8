"""TODO: the face of bridge/testing."""
