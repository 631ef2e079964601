"""Takes keys from `pass`, the password manager: the first line of `llm/NAME`."""

import subprocess

from llm import hookimpl


@hookimpl
def llm_key(name: str) -> str | None:
    done = subprocess.run(["pass", "show", f"llm/{name}"], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    return lines[0] if done.returncode == 0 and lines else None
