"""`ai-cli backends`, `recipes`, `models` and `why`: contributions of plug-ins, and which of them would be used."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import click

from llm._dataclasses import dataclass
from llm._installed import BACKEND_GROUP, RECIPE_GROUP
from llm.errors import PLUGIN_FAULTS, D0ttinoError, UnknownNameError, UsageError, reason_of
from scripts.cli.base import (
    Command,
    Group,
    backends_of,
    current_cooldowns,
    current_host,
    find_backend,
    report,
    set_aside,
    warn_of_problems,
)
from scripts.cli.options import NameOf, as_json_option, read_text, routing_options
from scripts.output import print_json, print_line, print_message, print_table, print_warning, stdout_to_stderr, waiting

if TYPE_CHECKING:
    from llm.contributions import Catalog, RegisteredBackend, RegisteredRecipe
    from llm.hooks import Origin
    from llm.host import Host
    from llm.types import Call, Route

#: The facts of a backend whose plug-in is blocked, see `_facts`.
_BLOCKED_FACTS: Final[dict[str, Any]] = {
    "ready": False,
    "set_one_of": [],
    "models": [],
    "options": [],
    "known_options": {},
    "cooldown": None,
}


@click.group(cls=Group, invoke_without_command=True)
@as_json_option()
@click.option("--check", is_flag=True, help="Ask each backend whether it would answer now.")
@click.pass_context
def backends(ctx: click.Context, as_json: bool, check: bool) -> None:
    """List backends, their plug-ins, and whether they are ready to use.

    A backend that failed several times in a row is set aside for a while, and shown as such.
    """
    if ctx.invoked_subcommand is not None:
        return
    host = current_host(ctx)
    catalog = backends_of(host)
    warn_of_problems(host, configuration=True)
    cooldowns = set_aside(ctx)
    checks = checked(host, catalog.active) if check else {}

    def facts(backend: "RegisteredBackend") -> dict[str, Any]:
        found = {**_facts(host, backend), "cooldown": cooldowns.get(backend.name)}
        if backend.name in checks and catalog[backend.name] is backend:
            found["check"] = checks[backend.name].to_json()
        return found

    rows = [*_rows(catalog, facts), *_blocked_rows(host, "backend", BACKEND_GROUP, _BLOCKED_FACTS)]
    if as_json:
        print_json(rows)
        return
    # Most servers know the same options: the column is for backends that declare their own, and take no others.
    show_options = any(row["options"] for row in rows)
    print_table(
        ("BACKEND", "PLUG-IN", "FROM", *(["OPTIONS"] if show_options else []), "STATUS"),
        [
            (
                row["name"],
                row["plugin"],
                row["from"],
                *([_options(row)] if show_options else []),
                _status(row, _setup(row)),
            )
            for row in rows
        ],
    )


@backends.command()
@click.argument("name", required=False)
@click.pass_context
def reset(ctx: click.Context, name: str | None) -> None:
    """Close the circuit breakers of all backends, or of NAME."""
    cooldowns = current_cooldowns(ctx)
    try:
        names = cooldowns.reset(name)
    except OSError as error:
        raise D0ttinoError(f"cannot change {cooldowns.path}: {error.strerror or error}") from error
    if name is not None and not names:
        find_backend(current_host(ctx), name)
    print_line("\n".join(f"{one} is used again" for one in names) or "nothing was set aside")


@click.command(cls=Command)
@as_json_option()
@click.pass_context
def recipes(ctx: click.Context, as_json: bool) -> None:
    """List recipes and their plug-ins."""
    host = current_host(ctx)
    with stdout_to_stderr():
        catalog = host.recipes()
    warn_of_problems(host)
    rows = [*_rows(catalog), *_blocked_rows(host, "recipe", RECIPE_GROUP, {})]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("RECIPE", "PLUG-IN", "FROM", "DESCRIPTION"),
        [(row["name"], row["plugin"], row["from"], _status(row, row["description"])) for row in rows],
    )


def _rows(
    catalog: "Catalog[RegisteredBackend] | Catalog[RegisteredRecipe]",
    more: Callable[[Any], dict[str, Any]] = lambda _one: {},
) -> Iterator[dict[str, Any]]:
    """Yield a row for each backend or recipe in use, by name, each followed by those that it shadows."""
    for name in sorted(catalog):
        winner = catalog[name]
        shadowed = catalog.shadowed.get(name, ())
        shadows = [str(one.origin) for one in shadowed]
        yield {**_row(name, winner.origin, winner.description, shadows=shadows), **more(winner)}
        for one in shadowed:
            yield {**_row(name, one.origin, one.description, shadowed_by=str(winner.origin)), **more(one)}


def _blocked_rows(host: "Host", kind: str, group: str, facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each blocked plug-in of a kind, with the name that is known without an import."""
    for blocked in host.blocked:
        origin = blocked.origin
        declared = origin.entry_point or ""
        if declared.startswith(f"{group}:") or (origin.builtin and origin.plugin.startswith(f"{kind}:")):
            yield {**_row(origin.plugin.removeprefix(f"{kind}:"), origin, blocked_by=blocked.by), **facts}


def _row(
    name: str,
    origin: "Origin",
    description: str = "",
    *,
    shadows: Sequence[str] = (),
    shadowed_by: str | None = None,
    blocked_by: str | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "description": description,
        **origin.to_json(),
        "from": origin.source,
        "shadows": list(shadows),
        "shadowed_by": shadowed_by,
        "blocked_by": blocked_by,
    }


def _facts(host: "Host", backend: "RegisteredBackend") -> dict[str, Any]:
    """Return whether a backend is ready, its models and its options."""
    with stdout_to_stderr():
        ready = host.is_ready(backend)
    return {
        "ready": ready,
        "set_one_of": [] if ready else list(backend.ready_env),
        "models": list(backend.models),
        "options": [one.to_json() for one in backend.options],
        "known_options": dict(backend.known_options),
    }


def _options(row: dict[str, Any]) -> str:
    """Return the options that a backend declares, or the number of known ones: servers have too many to list."""
    if row["options"]:
        return ", ".join(one["name"] for one in row["options"])
    return f"{len(row['known_options'])} known" if row["known_options"] else ""


def _setup(row: dict[str, Any]) -> str:
    """Return whether a backend can be used, and what it lacks."""
    if row.get("check"):
        return str(row["check"]["words"])
    if row["cooldown"] is not None:
        return str(row["cooldown"]["reason"])
    if row["ready"]:
        return "ready"
    return f"set {' or '.join(row['set_one_of'])}" if row["set_one_of"] else "not ready (`ai-cli why send`)"


def _status(row: dict[str, Any], status: str) -> str:
    """Return a status with what the row shadows, or why it is not used."""
    if row["blocked_by"]:
        return f"not used: blocked by {row['blocked_by']}"
    if row["shadowed_by"]:
        return f"not used: shadowed by {row['shadowed_by']}"
    shadows = f"shadows {', '.join(row['shadows'])}" if row["shadows"] else ""
    return "; ".join(filter(None, (status, shadows)))


#: Seconds that a service has for an answer other than to a prompt.
_TIMEOUT: Final = 10.0


@dataclass(frozen=True)
class Checked:
    """The result of asking a backend whether it would answer.

    Attributes:
        ok: whether it would; `None`: it cannot be asked.
        reason: why not.
        hint: what to do about that.
        answered: whether the service gave the reason itself; else asking it failed.
    """

    ok: bool | None
    reason: str = ""
    hint: str = ""
    answered: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {"ok": self.ok, "reason": self.reason, "hint": self.hint, "words": self.words}

    @property
    def words(self) -> str:
        """The result in a few words."""
        if self.ok is None:
            return "ready, as far as can be known"
        if self.ok:
            return "answers"
        hint = f" ({self.hint})" if self.hint else ""
        return f"{'cannot be used' if self.answered else 'does not answer'}: {self.reason}{hint}"


def checked(host: "Host", backends: "Iterable[RegisteredBackend]") -> Mapping[str, Checked]:
    """Ask backends concurrently whether they would answer; return the results by name."""
    from concurrent.futures import ThreadPoolExecutor

    backends = list(backends)
    # Import plug-ins here, one after the other: not all can be imported by several threads at once.
    for backend in backends:
        with suppress(*PLUGIN_FAULTS):  # `check` reports it
            host.loaded(backend)
    names = ", ".join(backend.name for backend in backends)
    with (
        stdout_to_stderr(),
        waiting(f"asking {names}"),
        ThreadPoolExecutor(max_workers=max(1, min(16, len(backends)))) as pool,
    ):
        answers = pool.map(lambda backend: check(host, backend), backends)
        return {backend.name: answer for backend, answer in zip(backends, answers, strict=True)}


def check(host: "Host", backend: "RegisteredBackend") -> Checked:
    """Ask one backend whether it would answer."""
    try:
        backend = host.loaded(backend)
        if backend.check is None:
            return Checked(None) if host.is_ready(backend) else Checked(False, "it lacks a key", backend.setup)
        reason = backend.check(call_for(host))
    except PLUGIN_FAULTS as error:
        message, hint = reason_of(error)
        return Checked(False, message, hint or "")
    return Checked(True) if reason is None else Checked(False, str(reason), answered=True)


def call_for(host: "Host") -> "Call":
    """Return the call for a question that is not a prompt."""
    from llm.types import Call

    deadline = monotonic() + _TIMEOUT
    return Call(deadline=deadline, first_deadline=deadline, key=host.key)


@click.command(cls=Command)
@click.option(
    "-b",
    "--backend",
    metavar="NAME",
    type=NameOf("backend"),
    help="Ask this backend only; by default every one that is ready.",
)
@click.option("--search", metavar="WORDS", help="List only models whose names have all these words.")
@click.option("--refresh", is_flag=True, help="Ask the servers instead of the cache, which lasts a day.")
@as_json_option()
@click.pass_context
def models(ctx: click.Context, backend: str | None, search: str | None, refresh: bool, as_json: bool) -> int:
    """List the models that backends have, as -m takes them: SERVER/MODEL.

    If a backend cannot be asked, its last list is shown, with a warning. The exit status is 1 if one has no
    list.
    """
    host = current_host(ctx)
    catalog = backends_of(host)
    warn_of_problems(host, configuration=True)
    if backend is None:
        chosen = sorted((one for one in catalog.values() if host.is_ready(one)), key=lambda one: one.name)
    else:
        chosen = [find_backend(host, backend)]
    words = (search or "").lower().split()
    rows, empty = [], []
    for one in chosen:
        row = _listed(host, one, refresh=refresh, named=backend is not None)
        if row is not None:
            if not row["models"] and row["error"] is None:
                empty.append(row["backend"])
            row["models"] = [name for name in row["models"] if all(word in name.lower() for word in words)]
            rows.append(row)
    warn_of_problems(host, configuration=True)
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            for name in row["models"]:
                print_line(f"{row['backend']}/{name}")
        if not any(row["models"] for row in rows):
            from llm.backends.http import NO_MODELS

            for name in empty:
                print_message(f"{name}: {NO_MODELS}")
            if not empty:
                matching = f" whose name holds {search!r}" if words else ""
                print_message(f"no model is listed{matching}; `ai-cli backends` shows which backends are ready")
    return 1 if any(row["error"] and row["age"] is None for row in rows) else 0


def _listed(host: "Host", backend: "RegisteredBackend", *, refresh: bool, named: bool) -> dict[str, Any] | None:
    """Return the row of a backend; `None` if it cannot list models, and the user did not name it."""
    from llm.contributions import listed_models, models_of

    name = backend.name
    try:
        with stdout_to_stderr():
            ask = host.loaded(backend).list_models
            if ask is None:
                static = list(backend.models)
                return {"backend": name, "models": static, "age": 0, "error": None} if static or named else None
            with waiting(f"asking {name}"):
                found = models_of(name, lambda: ask(call_for(host)), refresh=refresh)
    except PLUGIN_FAULTS as error:
        message, hint = reason_of(error)
        hint = f"\n{hint}" if hint else ""
        old = listed_models(name)
        if old is None:
            print_warning(f"{name} does not list its models: {message}{hint}")
            return {"backend": name, "models": [], "age": None, "error": message}
        known = f"its models of {_duration(old.age)} ago are listed"
        print_warning(f"{name} does not list its models: {message}; {known}{hint}")
        return {"backend": name, "models": list(old.models), "age": round(old.age), "error": message}
    return {"backend": name, "models": list(found.models), "age": round(found.age), "error": None}


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'' if number == 1 else 's'}"
    return "less than a minute"


@click.group(cls=Group)
def why() -> None:
    """Explain a decision, without asking a backend or running a step."""


@why.command()
@click.argument("words", metavar="PROMPT", nargs=-1, required=True)
@routing_options
@as_json_option()
@click.pass_context
def send(
    ctx: click.Context, words: tuple[str, ...], backend: str | None, model: str | None, local: bool, as_json: bool
) -> int:
    """Explain which backends would be asked for PROMPT, in which order, and why.

    The routing policies are asked, no backend is. The exit status is 2 if none would be asked.
    """
    from llm.router import NoCandidateError, choose_route
    from llm.types import Request

    host = current_host(ctx)
    text = read_text(" ".join(words))
    if not text.strip():
        raise UsageError("the prompt is empty", hint="give some text to answer")
    backends = backends_of(host)
    warn_of_problems(host)  # before an unknown name ends the command: its plug-in may be broken
    failure = None
    try:
        with stdout_to_stderr():
            route = choose_route(Request(text, model, backend, local), backends, host)
    except NoCandidateError as error:
        route, failure = error.route, error
    warn_of_problems(host)
    reasons = {name: one["reason"] for name, one in set_aside(ctx).items() if name != backend}
    facts = _route_facts(host, route, model, reasons)
    if as_json:
        print_json(facts)
    else:
        _print_route(facts)
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
        "step_guardrails": _plugins(host, "llm_prepare_step"),
        "steps_are_offered_to": _plugins(host, "llm_run_step"),
        "step_wrappers": _plugins(host, "llm_run_step", wrappers=True),
        "blocked": [str(blocked) for blocked in host.blocked],
        "to_change": list(_uncover(recipes, name)),
    }
    if as_json:
        print_json(facts)
        return
    print_line(f"the steps of {name!r} would come from {facts['plugin_and_source']}")
    _print_list("shadowed by it", facts["shadows"])
    _print_list("may change or refuse each step", facts["step_guardrails"])
    _print_list("each step is offered to, in this order", facts["steps_are_offered_to"])
    _print_list("around each step", facts["step_wrappers"])
    _print_list("blocked", facts["blocked"])
    _print_list("to change that", facts["to_change"])


def _route_facts(host: "Host", route: "Route", model: str | None, reasons: Mapping[str, str]) -> dict[str, Any]:
    backends = host.backends()
    order = [
        {
            "backend": candidate.backend,
            "model": model or candidate.model,
            "reason": candidate.reason,
            **_provider(backends, candidate.backend),
            "guardrails": _plugins(host, "llm_prepare"),
            "asked_before": _plugins(host, "llm_complete")[:-1],  # the last is the host's own: it asks the backend
            "wrappers": _plugins(host, "llm_complete", wrappers=True),
            "not_ready": [] if host.is_ready(info := backends[candidate.backend]) else list(info.ready_env),
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
            *_route_remedies(host, backends, route),
            *(
                f"use {one['backend']} again: ai-cli backends reset {one['backend']}"
                for one in order
                if one["set_aside"]
            ),
        ],
    }


def _print_route(facts: dict[str, Any]) -> None:
    print_line(f"policy: {facts['policy']}")
    _print_list("around it", facts["around_the_policy"], "   ")
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
            _print_list(title, one[key], "   ")
    # What would make a backend ready is among the remedies at the end.
    known = {f": {change.partition(' ready: ')[2]}" for change in facts["to_change"] if " ready: " in change}
    left_out = [
        (one["backend"], next(filter(one["reason"].endswith, known), ""), one["reason"]) for one in facts["left_out"]
    ]
    _print_list("left out", [f"{backend}: {reason.removesuffix(remedy)}" for backend, remedy, reason in left_out])
    _print_list("blocked", facts["blocked"])
    _print_list("note", facts["notices"])
    _print_list("to change that", facts["to_change"])


def _print_list(title: str, items: Sequence[str], indent: str = "") -> None:
    if items:
        print_line(f"{indent}{title}:")
        for item in items:
            print_line(f"{indent}  {item}")


def _provider(catalog: "Catalog[RegisteredBackend] | Catalog[RegisteredRecipe]", name: str) -> dict[str, Any]:
    """Return the plug-in of a backend or recipe, and those that it shadows."""
    origin = catalog[name].origin
    return {
        **origin.to_json(),
        "plugin_and_source": str(origin),
        "shadows": [str(other.origin) for other in catalog.shadowed.get(name, ())],
    }


def _plugins(host: "Host", hook: str, *, wrappers: bool = False) -> list[str]:
    """Return the plug-ins that implement a hook, in the order in which they are asked."""
    return [str(origin) for origin, options in host.implementations(hook) if bool(options.get("wrapper")) is wrappers]


def _route_remedies(host: "Host", backends: "Catalog[RegisteredBackend]", route: "Route") -> Iterator[str]:
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


def _uncover(catalog: "Catalog[RegisteredBackend] | Catalog[RegisteredRecipe]", name: str) -> Iterable[str]:
    """Return how to use the backend or recipe that another one shadows."""
    origin = catalog[name].origin
    if name in catalog.shadowed and origin.distribution is not None:
        return [f"use the {name!r} that it shadows: --no-plugin {origin.distribution}"]
    return []
