"""Questions to the services of backends: whether they would answer, and their models (`ai-cli models`)."""

from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from llm.errors import PLUGIN_FAULTS, UnknownNameError
from llm.hooks._faults import reason_of
from scripts.cli.base import Command
from scripts.cli.context import current_host, warn_of_problems
from scripts.cli.options import NameOf, as_json_option
from scripts.output import print_json, print_line, print_message, print_warning, stdout_to_stderr, waiting

if TYPE_CHECKING:
    from llm.contributions import RegisteredBackend
    from llm.host import Host
    from llm.types import Call

#: Seconds that a service has for its answer.
_PATIENCE: Final = 10.0


class Checked(NamedTuple):
    """What asking a backend showed.

    Attributes:
        ok: whether it would answer; `None`: it cannot be asked.
        reason: why not.
        hint: what to do about that.

    """

    ok: bool | None
    reason: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {**self._asdict(), "words": self.words}

    @property
    def words(self) -> str:
        """It in a few words."""
        if self.ok is None:
            return "ready, as far as can be known"
        hint = f" ({self.hint})" if self.hint else ""
        return "answers" if self.ok else f"does not answer: {self.reason}{hint}"


def checked(host: "Host", backends: "Iterable[RegisteredBackend]") -> Mapping[str, Checked]:
    """Ask backends at the same time whether they would answer; return the findings by name."""
    from concurrent.futures import ThreadPoolExecutor

    backends = list(backends)
    # What plug-ins import at once would be imported in threads: one after the other is safe.
    for backend in backends:
        try:
            host.loaded(backend)
        except PLUGIN_FAULTS:
            continue  # asking it has the same fault
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
    return Checked(True) if reason is None else Checked(False, str(reason))


def call_for(host: "Host") -> "Call":
    """Return the call of a question that is no prompt."""
    from llm.types import Call

    deadline = monotonic() + _PATIENCE
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
    with stdout_to_stderr():
        offers = host.backends()
    if backend is not None and backend not in offers:
        warn_of_problems(host, configuration=True)
        raise UnknownNameError("backend", backend, offers, hint=host.why_missing())
    chosen = [one for one in offers.values() if (host.is_ready(one) if backend is None else one.name == backend)]
    words = (search or "").lower().split()
    rows = []
    for one in sorted(chosen, key=lambda one: one.name):
        row = _listed(host, one, refresh=refresh, named=backend is not None)
        if row is not None:
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
            print_message("no model is listed" + (f" whose name holds {search!r}" if words else ""))
    return 1 if any(row["error"] and row["age"] is None for row in rows) else 0


def _listed(host: "Host", backend: "RegisteredBackend", *, refresh: bool, named: bool) -> dict[str, Any] | None:
    """Return the models of a backend; `None` if it has no list of them, and the user did not name it."""
    from llm.backends.http._models import cached, models_of

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
        old = cached(name)
        known = "" if old is None else f"; its models of {_ago(old.age)} ago are listed"
        print_warning(f"{name} does not list its models: {message}{known}" + (f"\n{hint}" if hint else ""))
        return {
            "backend": name,
            "models": [] if old is None else list(old.models),
            "age": None if old is None else round(old.age),
            "error": message,
        }
    return {"backend": name, "models": list(found.models), "age": round(found.age), "error": None}


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'' if number == 1 else 's'}"
    return "less than a minute"
