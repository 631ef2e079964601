"""What could be meant by a name that nothing has, and why it may be missing."""

from typing import TYPE_CHECKING

from llm.hooks.problems import ProblemKind

if TYPE_CHECKING:
    from llm.host import Host


def names_to_block(host: "Host") -> set[str]:
    """Return the names by which the user can do without a plug-in."""
    installed = {name for entry in host.entries for name in (entry.name, entry.distribution)}
    return installed | {name.partition(":")[2] or name for name in host.plugin_names()}


def why_missing(host: "Host") -> str | None:
    """Return a hint that names plug-ins that are not in use: a name that is missing may be theirs."""
    failed = [str(problem.origin) for problem in host.problems if problem.kind is ProblemKind.FAILED]
    hints = [f"Not loaded: {', '.join(failed)}; `ai-cli plugins list` says why"] if failed else []
    for by in dict.fromkeys(blocked.by for blocked in host.blocked):
        left_out = [str(blocked.origin) for blocked in host.blocked if blocked.by == by]
        hints.append(f"Left out because of {by}: {', '.join(left_out)}")
    return "; ".join(hints) or None
