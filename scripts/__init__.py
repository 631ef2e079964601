"""The commands: `ai-cli`, and `python -m scripts.plugins`."""
