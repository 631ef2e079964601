"""Routing: choosing backends for a request, and asking them until one answers."""
