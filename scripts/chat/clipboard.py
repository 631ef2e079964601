"""The clipboard: by a program of the desktop, else by the terminal."""

import os
import shutil
import subprocess
from base64 import b64encode
from typing import Final

from llm.errors import D0ttinoError
from scripts.output import send_to_terminal

#: Programs, and the variable without which they have no desktop.
_PROGRAMS: Final = (
    (("pbcopy",), "HOME"),
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
)
_THEIRS: Final = ("PATH", "HOME", "WAYLAND_DISPLAY", "DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "LANG")

#: Seconds that such a program may take.
_PATIENCE: Final = 5.0


def copy(text: str) -> str:
    """Put a text into the clipboard, and return what takes it there.

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
            return words[0]
    # OSC 52: terminals that know it take it, also over ssh.
    if not send_to_terminal(f"\x1b]52;c;{b64encode(text.encode('utf-8', 'replace')).decode()}\a"):
        raise D0ttinoError(
            "there is no clipboard",
            hint="wl-copy, xclip, pbcopy or a terminal that takes OSC 52 is needed; /save FILE writes a file",
        )
    return "the terminal, if it takes OSC 52"
