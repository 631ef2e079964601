"""One run of the program: its host, its trace, its errors and warnings."""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import click

from llm.errors import ConfigError, D0ttinoError
from scripts.cli.options import TREE, Shared, shared
from scripts.output import HOST, print_error, print_message, print_warning, redact, stdout_to_stderr, waiting

if TYPE_CHECKING:
    from llm.conversations import ConversationLog
    from llm.hooks._trace import Trace
    from llm.host import Host
    from llm.routing.breaker import Cooldowns

_TRACE: Final = "d0ttino.trace"
_WARNED: Final = "d0ttino.warned"

#: Values of `LLM_TRACE` that are no file.
_OFF: Final = frozenset({"", "0", "false", "no", "off"})
_ON: Final = frozenset({"1", "true", "yes", "on"})


def current_host(ctx: click.Context) -> "Host":
    """Return the host that commands use: the context's if a program gave one, else the process's."""
    root = ctx.find_root()
    if HOST not in root.meta:
        trace = start_trace(ctx)  # before the host is made: the imports of plug-ins belong to the trace
        with stdout_to_stderr(), waiting("loading plug-ins"):
            host = root.obj if root.obj is not None else _process_host(ctx, shared(ctx))
        root.meta[HOST] = host
        if trace is not None:
            trace.blocked = tuple(host.blocked)
            root.with_resource(host.monitor.watching())
    found: Host = root.meta[HOST]
    return found


def _process_host(ctx: click.Context, options: Shared) -> "Host":
    with import_phase(ctx, "framework"):
        from llm._state import directory_faults
        from llm.errors import UnknownNameError
        from llm.hooks._entrypoints import Blocking
        from llm.host import current_host as process_host
        from scripts.packages import record

    host = process_host(Blocking.of(tuple(dict.fromkeys(options.no_plugin)), options.no_plugins))
    for kind in ("cache", "state"):
        for _, fault in directory_faults(kind):
            print_warning(f"{fault}; `ai-cli doctor` says how to mend that")
    for warning in record.warnings(entry.distribution for entry in host.entries):
        print_warning(str(warning))
    for name in host.unknown_blocked:
        unknown = UnknownNameError("plug-in", name, host.blockable_names())
        print_warning(f"{unknown.message} to block. {unknown.hint}")
    return host


def no_plugin_implements(hook: str, ctx: click.Context) -> bool:
    """Whether it is known, without making a host, that no plug-in implements a hook."""
    root, options = ctx.find_root(), shared(ctx)
    if root.obj is not None or HOST in root.meta or options.no_plugin or options.trace or "llm.host" in sys.modules:
        return False  # there is a host that may know more, or the user wants to hear of plug-ins
    from llm._installed import nobody_implements

    return nobody_implements(hook)


def start_trace(ctx: click.Context) -> "Trace | None":
    """Begin the run's trace if it was asked for and has not begun; it ends with the run."""
    root = ctx.find_root()
    if _TRACE not in root.meta:
        options = shared(ctx)
        target = options.trace or _trace_variable()
        root.meta[_TRACE] = None
        if target is not None:
            from llm.redaction import redactor
            from scripts.cli.trace_view import traced

            def redact() -> Callable[[str], str]:
                host: Host | None = root.meta.get(HOST)
                return redactor() if host is None else host.redactor()

            root.meta[_TRACE] = root.with_resource(traced(target, options.trace_values, redact))
    trace: Trace | None = root.meta[_TRACE]
    return trace


def _trace_variable() -> str | None:
    value = os.environ.get("LLM_TRACE", "").strip()
    if value.lower() in _OFF:
        return None
    return TREE if value.lower() in _ON else value


def import_phase(ctx: click.Context, what: str) -> AbstractContextManager[object]:
    """Record an import in the run's trace, if there is one."""
    if ctx.meta.get(_TRACE) is None:
        return nullcontext()
    from llm.hooks._trace import phase

    return phase(f"import of the {what}")


def report(error: D0ttinoError, ctx: click.Context) -> None:
    """Print an error to stderr with its hint, and with `--debug` its traceback."""
    if shared(ctx).debug:
        from llm.hooks._faults import shown

        print_message(shown(error))
    print_error(error.message)
    if error.hint:
        print_message(f"  {error.hint}")


def warn_of_problems(host: "Host", *, configuration: bool = False) -> None:
    """Print each problem of the host's plug-ins to stderr, once in a run; with `--debug` its traceback.

    Args:
        host: the host.
        configuration: whether to print what the configuration file kept from built-in plug-ins, too; who sends
            something gets that as an error or a note.

    """
    ctx = click.get_current_context()
    warned = ctx.meta.setdefault(_WARNED, set())
    for problem in host.problems:
        of_file = problem.origin.builtin and problem.hook == "llm_backends" and isinstance(problem.error, ConfigError)
        if of_file and not configuration:
            continue
        if id(problem) not in warned:
            warned.add(id(problem))
            if problem.error is not None and shared(ctx).debug:
                from llm.hooks._faults import shown

                print_message(shown(problem.error, problem.origin))
            print_warning(str(problem))


_COOLDOWNS: Final = "d0ttino.cooldowns"
_LOG: Final = "llm.conversations"


def current_cooldowns(ctx: click.Context) -> "Cooldowns":
    """Return the circuit breaker of this run."""
    meta = ctx.find_root().meta
    if _COOLDOWNS not in meta:
        from llm.routing.breaker import Cooldowns

        meta[_COOLDOWNS] = Cooldowns(on_fault=print_warning)
    cooldowns: Cooldowns = meta[_COOLDOWNS]
    return cooldowns


def set_aside(ctx: click.Context) -> dict[str, dict[str, Any]]:
    """Return the backends that are set aside, see `Cooldowns.set_aside`; none if the user does without that."""
    from llm.routing.breaker import enabled

    return current_cooldowns(ctx).set_aside() if enabled() else {}


def enable_state(host: "Host") -> None:
    """Enable the circuit breaker and the usage ledger on a host, unless opted out."""
    from llm.routing import breaker

    breaker.enable_state(host, current_cooldowns(click.get_current_context()))


def enable_log(host: "Host") -> None:
    """Record the conversations of a host, unless opted out."""
    from llm.conversations import enabled

    if enabled() and not host.has_plugin(_LOG):
        from llm import DISTRIBUTION, __version__
        from llm.hooks._origin import Origin, Tier

        host.register(log(), _LOG, origin=Origin(_LOG, Tier.BUILTIN, DISTRIBUTION, __version__, module=_LOG))


def log() -> "ConversationLog":
    """Return the log of conversations; it is written without the secrets of this run."""
    from llm.conversations import ConversationLog

    return ConversationLog(redact=redact)
