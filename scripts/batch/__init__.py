"""The rows that a batch reads, and the results that it writes."""
