"""The lines of a batch, and their results."""
