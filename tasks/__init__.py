"""Example handlers: a small pipeline for dreams. Importing the package registers them."""

from tasks import activity, dreams

__all__ = ["activity", "dreams"]
