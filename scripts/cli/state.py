"""State that commands keep between runs: the circuit breaker and the usage ledger."""

from typing import TYPE_CHECKING, Any, Final

import click

from scripts.cli.output import say

if TYPE_CHECKING:
    from llm.cooldown import Cooldowns
    from llm.host import Host

_COOLDOWNS: Final = "d0ttino.cooldowns"
_LEDGER: Final = "llm.usage.ledger"


def current_cooldowns(ctx: click.Context) -> "Cooldowns":
    """Return the circuit breaker of this run."""
    meta = ctx.find_root().meta
    if _COOLDOWNS not in meta:
        from llm.cooldown import Cooldowns

        meta[_COOLDOWNS] = Cooldowns(on_fault=lambda sentence: say(f"warning: {sentence}"))
    cooldowns: Cooldowns = meta[_COOLDOWNS]
    return cooldowns


def set_aside(ctx: click.Context) -> dict[str, dict[str, Any]]:
    """Return the backends that are set aside, see `Cooldowns.set_aside`; none if the user does without that."""
    from llm.cooldown import enabled

    return current_cooldowns(ctx).set_aside() if enabled() else {}


def keep_state(host: "Host") -> None:
    """Enable the circuit breaker and the usage ledger on a host, unless opted out."""
    from llm import cooldown
    from llm.usage import ledger

    if cooldown.enabled() and host.breaker is None:
        host.breaker = current_cooldowns(click.get_current_context())
    if ledger.enabled() and not host.has_plugin(_LEDGER):
        from llm import DISTRIBUTION, __version__
        from llm.hooks.origin import Origin, Tier

        origin = Origin(_LEDGER, Tier.BUILTIN, DISTRIBUTION, __version__, module=_LEDGER)
        host.register(ledger.Ledger(), _LEDGER, origin=origin)
