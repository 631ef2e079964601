"""The commands of `ai-cli`, one module for each; `scripts.ai_cli` imports one when it is run."""
