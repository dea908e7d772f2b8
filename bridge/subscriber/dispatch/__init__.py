"""Dispatch: journal entries become task messages, in the order of the journal."""
