"""A support desk for Python: three retrieval agents vote, a writer quotes the documentation."""
