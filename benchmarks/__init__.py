"""How fast the bridge is beside what people use today: ``make bench``, or ``python -m benchmarks --help``."""
