"""Asking the services of backends: whether they would answer, and for their models."""

from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llm.errors import PLUGIN_FAULTS
from scripts.output import stdout_kept, waiting

if TYPE_CHECKING:
    from llm.contributions import RegisteredBackend
    from llm.host import Host
    from llm.types import Call

T = TypeVar("T")

#: Seconds that a service has for its answer.
_PATIENCE = 10.0


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
    return _of_all(host, backends, lambda backend: check(host, backend))


def check(host: "Host", backend: "RegisteredBackend") -> Checked:
    """Ask one backend whether it would answer."""
    try:
        backend = host.loaded(backend)
        if backend.check is None:
            return Checked(None) if host.is_ready(backend) else Checked(False, "it lacks a key", backend.setup)
        reason = backend.check(call_for(host))
    except PLUGIN_FAULTS as error:
        from llm.hooks._faults import reason_of

        message, hint = reason_of(error)
        return Checked(False, message, hint or "")
    return Checked(True) if reason is None else Checked(False, str(reason))


def call_for(host: "Host") -> "Call":
    """Return the call of a question that is no prompt."""
    from llm.types import Call

    deadline = monotonic() + _PATIENCE
    return Call(deadline=deadline, first_deadline=deadline, key=host.key)


def _of_all(
    host: "Host", backends: "Iterable[RegisteredBackend]", ask: "Callable[[RegisteredBackend], T]"
) -> dict[str, T]:
    from concurrent.futures import ThreadPoolExecutor

    backends = list(backends)
    # What plug-ins import at once would be imported in threads: one after the other is safe.
    for backend in backends:
        try:
            host.loaded(backend)
        except PLUGIN_FAULTS:
            continue  # asking it tells
    names = ", ".join(backend.name for backend in backends)
    with (
        stdout_kept(),
        waiting(f"asking {names}"),
        ThreadPoolExecutor(max_workers=max(1, min(16, len(backends)))) as pool,
    ):
        answers = pool.map(ask, backends)
        return {backend.name: answer for backend, answer in zip(backends, answers, strict=True)}
