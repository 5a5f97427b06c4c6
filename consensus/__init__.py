"""Consensus: the replicated task ledger and its way into a Raft log."""
