"""Dispatch: journal entries into task messages, in the order of the journal."""
