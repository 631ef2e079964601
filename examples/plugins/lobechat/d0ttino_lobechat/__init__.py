"""LobeChat for d0ttino, with a model of your choice for prompts that name none."""

__version__ = "0.1.0"
