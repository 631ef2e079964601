"""The ledger: usage and cost of every attempt."""
