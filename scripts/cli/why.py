"""`ai-cli why`: the route of a prompt or recipe, and what to change to get another one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from llm.errors import UnknownNameError, UsageError
from llm.router import NoCandidateError, choose_route
from llm.types import Request, Route
from scripts.cli.base import Group
from scripts.cli.context import current_host, report, set_aside, warn_of_problems
from scripts.cli.options import NameOf, as_json_option, read_text
from scripts.cli.send import routing_options
from scripts.output import print_json, print_line, stdout_to_stderr

if TYPE_CHECKING:
    from llm.contributions import RegisteredBackend, RegisteredRecipe
    from llm.host import Catalog, Host


@click.group(cls=Group)
def why() -> None:
    """Explain a decision, without asking a backend or running a step."""


@why.command()
@click.argument("prompt")
@routing_options
@as_json_option()
@click.pass_context
def send(ctx: click.Context, prompt: str, backend: str | None, model: str | None, local: bool, as_json: bool) -> int:
    """Explain which backends would be asked for PROMPT, in which order, and why.

    The routing policies are asked, no backend is. The exit status is 2 if none would be asked.
    """
    host = current_host(ctx)
    text = read_text(prompt)
    if not text.strip():
        raise UsageError("the prompt is empty", hint="give some text to answer")
    failure = None
    try:
        with stdout_to_stderr():
            route = choose_route(Request(text, model, backend, local), host.backends(), host)
    except NoCandidateError as error:
        route, failure = error.route, error
    warn_of_problems(host)
    reasons = {name: one["reason"] for name, one in set_aside(ctx).items() if name != backend}
    facts = _of_send(host, route, model, reasons)
    if as_json:
        print_json(facts)
    else:
        _show_send(facts)
    if failure is not None:
        report(failure, ctx)
        return failure.exit_code
    return 0


@why.command()
@click.argument("name", type=NameOf("recipe"))
@as_json_option()
@click.pass_context
def recipe(ctx: click.Context, name: str, as_json: bool) -> None:
    """Explain which plug-in would give the steps of the recipe NAME, and which would run them."""
    host = current_host(ctx)
    with stdout_to_stderr():
        recipes = host.recipes()
    warn_of_problems(host)
    if name not in recipes:
        raise UnknownNameError("recipe", name, recipes, hint=host.why_missing())
    facts: dict[str, Any] = {
        "recipe": name,
        **_provider(recipes, name),
        "step_guards": _plugins(host, "llm_prepare_step"),
        "steps_are_offered_to": _plugins(host, "llm_run_step"),
        "step_wrappers": _plugins(host, "llm_run_step", wrappers=True),
        "blocked": [str(blocked) for blocked in host.blocked],
        "to_change": list(_uncover(recipes, name)),
    }
    if as_json:
        print_json(facts)
        return
    print_line(f"the steps of {name!r} would come from {facts['plugin_and_source']}")
    _show_list("shadowed by it", facts["shadows"])
    _show_list("may change or refuse each step", facts["step_guards"])
    _show_list("each step is offered to, in this order", facts["steps_are_offered_to"])
    _show_list("around each step", facts["step_wrappers"])
    _show_list("blocked", facts["blocked"])
    _show_list("to change that", facts["to_change"])


def _of_send(host: "Host", route: Route, model: str | None, reasons: Mapping[str, str]) -> dict[str, Any]:
    backends = host.backends()
    order = [
        {
            "backend": candidate.backend,
            "model": model or candidate.model,
            "reason": candidate.reason,
            **_provider(backends, candidate.backend),
            "guards": _plugins(host, "llm_prepare"),
            "asked_before": _plugins(host, "llm_complete")[:-1],  # the last is the host's own: it asks the backend
            "wrappers": _plugins(host, "llm_complete", wrappers=True),
            "not_ready": _missing(host, backends[candidate.backend]),
            "set_aside": reasons.get(candidate.backend),
        }
        for candidate in route.candidates
    ]
    return {
        "policy": str(route.origin) if route.origin else "none: the caller named the backend",
        "around_the_policy": _plugins(host, "llm_route", wrappers=True),
        "order": order,
        "left_out": [{"backend": one.backend, "reason": one.reason} for one in route.rejected],
        "notices": list(route.notices),
        "blocked": [str(blocked) for blocked in host.blocked],
        "to_change": [
            *_to_change(host, backends, route),
            *(
                f"use {one['backend']} again: ai-cli backends reset {one['backend']}"
                for one in order
                if one["set_aside"]
            ),
        ],
    }


def _show_send(facts: dict[str, Any]) -> None:
    print_line(f"policy: {facts['policy']}")
    _show_list("around it", facts["around_the_policy"], "   ")
    for number, one in enumerate(facts["order"], 1):
        model = f", model {one['model']}" if one["model"] else ""
        ready = f"; not ready: set {' or '.join(one['not_ready'])}" if one["not_ready"] else ""
        reason = f": {one['reason']}" if one["reason"] else ""
        aside = f"; {one['set_aside']}" if one["set_aside"] else ""
        print_line(f"{number}. {one['backend']}{model}{reason}{ready}{aside}")
        print_line(f"   would be answered by {one['plugin_and_source']}")
        for title, key in (
            ("shadowed by it", "shadows"),
            ("may answer first", "asked_before"),
            ("around it", "wrappers"),
        ):
            _show_list(title, one[key], "   ")
    _show_list("left out", [f"{one['backend']}: {one['reason']}" for one in facts["left_out"]])
    _show_list("blocked", facts["blocked"])
    _show_list("note", facts["notices"])
    _show_list("to change that", facts["to_change"])


def _show_list(title: str, items: Sequence[str], indent: str = "") -> None:
    if items:
        print_line(f"{indent}{title}:")
        for item in items:
            print_line(f"{indent}  {item}")


def _provider(offers: "Catalog[RegisteredBackend] | Catalog[RegisteredRecipe]", name: str) -> dict[str, Any]:
    """Return the provider of a name, and those that it shadows."""
    origin = offers[name].origin
    return {
        **origin.to_json(),
        "plugin_and_source": str(origin),
        "shadows": [str(other.origin) for other in offers.shadowed.get(name, ())],
    }


def _plugins(host: "Host", hook: str, *, wrappers: bool = False) -> list[str]:
    """Return the plug-ins that implement a hook, in the order in which they are asked."""
    return [str(origin) for origin, options in host.implementations(hook) if bool(options.get("wrapper")) is wrappers]


def _missing(host: "Host", info: "RegisteredBackend") -> list[str]:
    return [] if host.is_ready(info) else list(info.ready_env)


def _to_change(host: "Host", backends: "Catalog[RegisteredBackend]", route: Route) -> Iterator[str]:
    chosen = [candidate.backend for candidate in route.candidates]
    others = [name for name in backends if name not in chosen[:1]]
    if others:
        yield f"use another backend: -b {' | '.join(others)}"
    for rejection in route.rejected:
        backend = backends.get(rejection.backend)
        if backend is not None and not host.is_ready(backend):
            yield f"make {backend.name} ready: {backend.setup}"
    yield "set LLM_PRIMARY_BACKEND, LLM_FALLBACK_BACKEND or LLM_ROUTING_MODE; see `ai-cli docs routing`"
    for name in chosen:
        yield from _uncover(backends, name)


def _uncover(offers: "Catalog[RegisteredBackend] | Catalog[RegisteredRecipe]", name: str) -> Iterable[str]:
    origin = offers[name].origin
    if name in offers.shadowed and origin.distribution is not None:
        return [f"use the {name!r} that it shadows: --no-plugin {origin.distribution}"]
    return []
