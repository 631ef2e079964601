"""Recording hook calls and imports of plug-ins in a `with llm.trace()` block."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llm.hooks._trace import Trace, collecting, phase

if TYPE_CHECKING:
    from llm.host import Host


@contextmanager
def trace(host: "Host | None" = None) -> Iterator[Trace]:
    """Collect the hook calls and imports of plug-ins that happen in a `with` block.

    Each context (a thread, or an asyncio task) collects its own; an outer block also collects the spans of an
    inner one. To have a thread collected too, run its function with `contextvars.copy_context().run`. A trace
    refers to the arguments and results of the calls, which live as long as it does.

    Args:
        host: the host whose hook calls are recorded; by default this process's. If that host was not made
            yet, it is made now, so that the trace shows the imports of its plug-ins.

    Returns:
        A context manager that gives the `Trace`; its spans are complete when the block ends.

    Raises:
        PluginLoadError: a plug-in calls this without `host` while it is being imported.

    """
    with collecting(Trace()) as collected:
        if host is None:
            with phase("import of the framework"):
                from llm.host import current_host

            host = current_host()
        collected.blocked = tuple(host.blocked)
        with host.monitor.watching():
            yield collected
