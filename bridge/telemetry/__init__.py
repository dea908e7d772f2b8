"""TODO: the face of bridge/telemetry."""
