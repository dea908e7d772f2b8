"""TODO: the face of bridge/cli/commands."""
