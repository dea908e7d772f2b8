"""Intake: broadcasts, and events found by their keys after a gap, into the journal."""
