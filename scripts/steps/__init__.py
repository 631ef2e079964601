"""Running steps: showing them, asking for each, running it as a child process, and keeping what happened."""
