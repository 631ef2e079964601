"""A d0ttino recipe that prints a goal, line by line."""

__version__ = "0.1.0"
