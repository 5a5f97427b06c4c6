"""The bench: `scripts/bench`, or `python -m tests.bench`."""
