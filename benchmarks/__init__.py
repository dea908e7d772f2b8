"""The speed of the bridge compared with the alternatives: ``make bench``, or ``python -m benchmarks --help``."""
