"""The clipboard: by a program of the desktop, else by the terminal."""

import os
import shutil
import subprocess
import sys
from base64 import b64encode
from typing import Final

from llm.errors import D0ttinoError
from scripts.cli.output import send_to_terminal

#: Programs, and the variable without which they have no desktop.
_PROGRAMS: Final = (
    (("pbcopy",), "HOME"),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
)
_THEIRS: Final = ("PATH", "HOME", "WAYLAND_DISPLAY", "DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "LANG")

#: Seconds that such a program may take.
_PATIENCE: Final = 5.0


def copy(text: str) -> None:
    """Put a text into the clipboard.

    Raises:
        D0ttinoError: there is none.

    """
    env = {name: os.environ[name] for name in _THEIRS if name in os.environ}
    for words, variable in _PROGRAMS:
        if variable in env and shutil.which(words[0]) is not None:
            content = text.encode("utf-8", "replace")
            try:
                # xclip stays to serve the text: it must not hold our files open.
                nowhere = subprocess.DEVNULL
                subprocess.run(
                    words, input=content, env=env, stdout=nowhere, stderr=nowhere, timeout=_PATIENCE, check=True
                )
            except (OSError, subprocess.SubprocessError):
                continue
            return
    if not sys.stderr.isatty():
        raise D0ttinoError("there is no clipboard", hint="wl-copy, xclip or a terminal is needed")
    # OSC 52: terminals that know it take it, also over ssh.
    send_to_terminal(f"\x1b]52;c;{b64encode(text.encode('utf-8', 'replace')).decode()}\a")
