"""`with llm.trace() as t:` records which plug-ins were asked, and what each of them did."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm.hooks.trace import Trace, collecting, phase

if TYPE_CHECKING:
    from llm.host import Host


@contextmanager
def trace(host: "Host | None" = None) -> Iterator[Trace]:
    """Collect the hook calls and imports of plug-ins that happen in a `with` block.

    Each context (a thread, or an asyncio task) collects its own; an outer block also collects what an
    inner one does. To have a thread collected too, run its function with
    `contextvars.copy_context().run`. A trace refers to the arguments and results of the calls, which
    live as long as it does.

    Args:
        host: whose hook calls to record; by default this process's. If that host was not made yet, it
            is made now, so that the trace shows which plug-ins were imported.

    Returns:
        A context manager that gives the `Trace`; its spans are complete when the block ends.

    Raises:
        PluginLoadError: a plug-in calls this without `host` while it is being imported.

    """
    with collecting(Trace()) as collected:
        if host is None:
            with phase("import of the framework"):
                from llm.process import current_host

            host = current_host()
        collected.blocked = tuple(host.blocked)
        with host.monitor.watching():
            yield collected
