"""Intake: appends events to the journal, those that are broadcast and those in event keys that were missed."""
