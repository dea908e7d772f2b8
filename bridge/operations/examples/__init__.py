"""Examples of payloads: valid ones for the models of handlers, and what is wrong with others."""

from bridge.operations.examples.payloads import NoExample, example_payload, misfits, models_of

__all__ = ["NoExample", "example_payload", "misfits", "models_of"]
