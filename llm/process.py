"""The host of this process: the one that `send_prompt` and the shims use unless told otherwise."""

import threading
from collections.abc import Iterator
from typing import Final

from llm.builtins import BUILTINS
from llm.errors import PluginLoadError
from llm.hooks.blocking import Blocking
from llm.hooks.catalogue import Catalogue
from llm.hooks.declarations import all_declared
from llm.hooks.entrypoints import EntryPoint, loading
from llm.hooks.learned import Learned
from llm.hooks.origin import Origin
from llm.hooks.registering import owner_of
from llm.hooks.trace import phase
from llm.host import Host, create_host


class _ProcessHost:
    """Makes the host once, when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._making = False
        self.host: Host | None = None

    def get(self, blocking: Blocking | None = None) -> Host:
        if self.host is None:
            with self._lock:
                if self._making:
                    raise PluginLoadError(
                        f"{loading.get() or 'a plug-in'} uses the plug-in host while it is being imported",
                        hint="call it from a function instead of at the top of the module",
                    )
                if self.host is None:
                    with phase("making the host", "its first use in this process"):
                        self._making = True
                        try:
                            self.host = self._make(Blocking.of() if blocking is None else blocking)
                        finally:
                            self._making = False
                        with phase("what loading taught"):
                            _remember(self.host)
        return self.host

    def _make(self, blocking: Blocking) -> Host:
        host = create_host(blocking=blocking)
        for declaration in all_declared():
            if declaration.module not in BUILTINS and owner_of(declaration, host.entries) is None:
                host.adopt(declaration)
        return host


def _remember(host: Host) -> None:
    """Store what a load taught. Plug-ins are asked for names only if it went otherwise than the last one."""
    loaded = outcome_of(host)
    if loaded and not Catalogue.read().knows(loaded):
        learn(host)


def outcome_of(host: Host) -> dict[EntryPoint, Learned]:
    """Return how loading went for each entry point that a host imported, as it is kept on disk: without secrets."""
    if not host.imported:
        return {}
    from llm.hooks.learning import outcome

    loaded = outcome(host, host.imported, host.made)
    if not any(learned.failure for learned in loaded.values()):
        return loaded
    from llm.redaction import redactor

    redact = redactor(host.secret_names())
    return {
        entry: learned._replace(failure=redact(learned.failure)) if learned.failure else learned
        for entry, learned in loaded.items()
    }


def _provided(host: Host) -> Iterator[tuple[str, str, Origin]]:
    for kind, offers in (("backend", host.backends()), ("recipe", host.recipes())):
        for name, info in offers.items():
            for one in (info, *offers.shadowed.get(name, ())):
                assert one.origin is not None  # the host puts it on everything that a hook returns
                yield kind, name, one.origin


def learn(host: Host) -> dict[EntryPoint, Learned]:
    """Ask a host's plug-ins what they bring, store it, and return it.

    Args:
        host: one that has loaded entry points.

    Returns:
        What each entry point brought, also where it is what was known before.

    """
    from llm.hooks.learning import with_names

    learned = with_names(outcome_of(host), _provided(host))
    Catalogue.read().store(learned)
    return learned


_process: Final = _ProcessHost()


def current_host(blocking: Blocking | None = None) -> Host:
    """Return the host of this process, making it on first use.

    It has the built-in plug-ins, those of installed distributions, and what the program registered
    with `register_backend` and `register_recipe`, before or after.

    Args:
        blocking: the plug-ins to leave out, if the host is made now; by default those that
            `LLM_DISABLE_PLUGINS` names.

    """
    return _process.get(blocking)


def existing_host() -> Host | None:
    """Return the host of this process if it was made already."""
    return _process.host
