"""State that commands keep between runs: the circuit breaker and the usage ledger."""

from typing import TYPE_CHECKING, Any, Final

import click

from scripts.cli.output import say

if TYPE_CHECKING:
    from llm.host import Host
    from llm.routing.breaker import Cooldowns

_COOLDOWNS: Final = "d0ttino.cooldowns"
_LEDGER: Final = "llm.usage"


def current_cooldowns(ctx: click.Context) -> "Cooldowns":
    """Return the circuit breaker of this run."""
    meta = ctx.find_root().meta
    if _COOLDOWNS not in meta:
        from llm.routing.breaker import Cooldowns

        meta[_COOLDOWNS] = Cooldowns(on_fault=lambda sentence: say(f"warning: {sentence}"))
    cooldowns: Cooldowns = meta[_COOLDOWNS]
    return cooldowns


def set_aside(ctx: click.Context) -> dict[str, dict[str, Any]]:
    """Return the backends that are set aside, see `Cooldowns.set_aside`; none if the user does without that."""
    from llm.routing.breaker import enabled

    return current_cooldowns(ctx).set_aside() if enabled() else {}


def keep_state(host: "Host") -> None:
    """Enable the circuit breaker and the usage ledger on a host, unless opted out."""
    from llm import usage
    from llm.routing import breaker
    from llm.routing.fallback import health_of

    health = health_of(host)
    if breaker.enabled() and health.breaker is None:
        health.breaker = current_cooldowns(click.get_current_context())
    if usage.enabled() and not host.has_plugin(_LEDGER):
        from llm import DISTRIBUTION, __version__
        from llm.hooks._origin import Origin, Tier

        origin = Origin(_LEDGER, Tier.BUILTIN, DISTRIBUTION, __version__, module=_LEDGER)
        host.register(usage.Ledger(), _LEDGER, origin=origin)
