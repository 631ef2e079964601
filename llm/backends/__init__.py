"""Backends: what authors of plug-ins import, and the built-in ones."""
