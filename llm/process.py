"""The host of this process: the one that `send_prompt` and the shims use unless told otherwise."""

import threading
from typing import Final

from llm.errors import PluginLoadError
from llm.hooks.declarations import all_declared
from llm.hooks.entrypoints import loading
from llm.hooks.loader import owner_of
from llm.host import BUILTINS, Host, create_host


class _ProcessHost:
    """Makes the host once, when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._making = False
        self.host: Host | None = None

    def get(self) -> Host:
        if self.host is None:
            with self._lock:
                if self._making:
                    raise PluginLoadError(
                        f"{loading.get() or 'a plug-in'} uses the plug-in host while it is being imported",
                        hint="call it from a function instead of at the top of the module",
                    )
                if self.host is None:
                    self._making = True
                    try:
                        self.host = self._make()
                    finally:
                        self._making = False
        return self.host

    def _make(self) -> Host:
        host = create_host()
        for declaration in all_declared():
            if declaration.module not in BUILTINS and owner_of(declaration, host.entries) is None:
                host.adopt(declaration)
        return host


_process: Final = _ProcessHost()


def current_host() -> Host:
    """Return the host of this process, making it on first use.

    It has the built-in plug-ins, those of installed distributions, and what the program registered
    with `register_backend` and `register_recipe`, before or after.
    """
    return _process.get()


def existing_host() -> Host | None:
    """Return the host of this process if it was made already."""
    return _process.host
