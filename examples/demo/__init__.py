"""`python -m examples.demo`: three nodes, real questions, a killed leader, and nothing lost."""
