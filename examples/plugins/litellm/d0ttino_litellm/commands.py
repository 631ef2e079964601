"""`ai-cli litellm install`: LiteLLM in an environment of its own."""

import shutil
import subprocess
import sys

import click

from d0ttino_litellm import VARIABLE, environment
from llm.backends.plugin_sdk import make_private
from llm.errors import D0ttinoError
from scripts.plugin_sdk import print_line, print_message

PACKAGE = "litellm>=1.60"


@click.group()
def litellm() -> None:
    """Install LiteLLM, which the backend `litellm` asks."""


@litellm.command()
def install() -> None:
    """Install LiteLLM, or a newer version of it, into an environment of its own."""
    place = environment()
    interpreter = str(place / "bin" / "python")
    make_private(place.parent)
    uv = shutil.which("uv")
    if uv is not None:
        create = [uv, "venv", "-q", "--allow-existing", str(place)]
        pip = [uv, "pip", "install", "--python", interpreter]
    else:
        create = [sys.executable, "-m", "venv", str(place)]
        pip = [interpreter, "-m", "pip", "install"]
    print_message(f"installing {PACKAGE} into {place}")
    for command in (create, [*pip, "-q", "-U", PACKAGE]):
        if subprocess.run(command, check=False).returncode:
            raise D0ttinoError(f"{' '.join(command)} failed; its own messages have the reason")
    print_line(
        f"installed; ai-cli send -m litellm/PROVIDER/MODEL, or set {VARIABLE}={interpreter} to have it asked first"
    )
