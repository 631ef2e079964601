"""The data that goes through the hooks: frozen dataclasses, safe to share between threads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from llm.hooks.origin import Origin

if TYPE_CHECKING:
    from llm.recipes.parameters import Parameter


def _no_options() -> Mapping[str, Any]:
    return MappingProxyType({})


class Value:
    """What `dataclass` would write into each class: compiling it at each start takes most of its time."""

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__qualname__}({fields})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def but(self, **changes: Any) -> Self:
        """Return the same with other values of some fields, as `dataclasses.replace` does, in a fifth of its time."""
        changed = object.__new__(type(self))
        object.__setattr__(changed, "__dict__", self.__dict__ | changes)
        return changed


@dataclass(frozen=True, repr=False, eq=False)
class Request(Value):
    """One prompt on its way to a backend.

    Attributes:
        prompt: the text to answer.
        model: the model asked for; `None` leaves it to the policy or the backend.
        backend: the one backend to use; `None` leaves it to the policy.
        local: whether the prompt must not leave this machine.
        options: further named values for backends that take them (`temperature` for example).
        timeout: seconds that the whole request may take, all attempts and waiting included; `None`:
            120. A backend can no longer be waited for after that.
        deadline: when that time is over, as `time.monotonic()` counts; the router fills it in.
        first_byte_deadline: until when an answer must have begun; the router fills it in. While others
            could still be asked, a backend that says nothing does not use up all the time.
        strict: whether no other backend and no other model than the one asked for may answer.
        fallback: whether others may answer if `backend` fails.
        max_attempts: how many attempts may be made, over all backends; `None`: 6.
        cooldown: whether backends that failed often are left out for a while.

    """

    prompt: str
    model: str | None = None
    backend: str | None = None
    local: bool = False
    options: Mapping[str, Any] = field(default_factory=_no_options)
    timeout: float | None = None
    deadline: float | None = None
    first_byte_deadline: float | None = None
    strict: bool = False
    fallback: bool = False
    max_attempts: int | None = None
    cooldown: bool = True


@dataclass(frozen=True, repr=False, eq=False)
class Usage(Value):
    """What an attempt used.

    Attributes:
        input_tokens: tokens of the prompt.
        output_tokens: tokens of the answer.
        cost: what they cost, in the currency of the server or of the configured prices; `None`: not known.
        estimated: whether the tokens are an estimate, because the server did not tell them.

    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.input_tokens + self.output_tokens

    def to_json(self) -> dict[str, Any]:
        """Return the usage as JSON-ready data."""
        return {
            "tokens": self.tokens,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost": self.cost,
            "estimated": self.estimated,
        }


_NO_USAGE: Mapping[str, Any] = MappingProxyType(
    {"tokens": None, "input_tokens": None, "output_tokens": None, "cost": None, "estimated": False}
)


@dataclass(frozen=True, repr=False, eq=False)
class BackendInfo(Value):
    """What a plug-in says of a backend that it provides.

    Attributes:
        name: what users and the configuration call it.
        description: one line for lists.
        models: models that it offers, for lists, if it can tell.
        local: whether prompts stay on this machine.
        ready_env: environment variables of which at least one must be set before the backend is
            used without having been named; empty: it is always ready.
        secret_env: environment variables that hold its secrets. Child processes do not get them.
        origin: who provides it; the host fills it in.

    """

    name: str
    description: str = ""
    models: tuple[str, ...] = ()
    local: bool = False
    ready_env: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()
    origin: Origin | None = None

    def is_ready(self, environ: Mapping[str, str]) -> bool:
        """Whether the backend has what it needs to be used without having been named."""
        return not self.ready_env or any(environ.get(name) for name in self.ready_env)


@dataclass(frozen=True, repr=False, eq=False)
class RecipeInfo(Value):
    """What a plug-in says of a recipe that it provides.

    Attributes:
        name: what users call it.
        description: one line for lists.
        origin: who provides it; the host fills it in.
        parameters: what it takes besides the goal.

    """

    name: str
    description: str = ""
    origin: Origin | None = None
    parameters: "tuple[Parameter, ...]" = ()


@dataclass(frozen=True, repr=False, eq=False)
class Candidate(Value):
    """A backend to try.

    Attributes:
        backend: its name.
        model: the model to ask it for, unless the request names one.
        reason: why the policy put it here.

    """

    backend: str
    model: str | None = None
    reason: str = ""


@dataclass(frozen=True, repr=False, eq=False)
class Rejection(Value):
    """A backend that the policy considered and left out.

    Attributes:
        backend: its name.
        reason: why.
        configured: whether the user named this backend, and so should be told.

    """

    backend: str
    reason: str
    configured: bool = True


@dataclass(frozen=True, repr=False, eq=False)
class Route(Value):
    """A routing policy's decision.

    Attributes:
        candidates: the backends to try, in order.
        rejected: the backends left out, with reasons.
        notices: what the user should be told, one line each.
        origin: the policy that decided; the host fills it in.

    """

    candidates: tuple[Candidate, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    notices: tuple[str, ...] = ()
    origin: Origin | None = None


@dataclass(frozen=True, repr=False, eq=False)
class Attempt(Value):
    """One try of one backend; a retry is an attempt of its own.

    Attributes:
        backend: its name.
        model: the model that it was asked for.
        origin: the plug-in that answered or failed; `None` if no plug-in took the request.
        duration: in seconds.
        error: why it did not answer, in one line; `None` if it did.
        error_type: class name of the exception behind the error.
        hint: what to do about the error.
        status: the HTTP status with which the server refused, if it did.
        usage: what it used; `None`: not known.
        served_model: the model that the server says it used.
        retry_after: how many seconds the server asks to wait before the next attempt.

    """

    backend: str
    model: str | None
    origin: Origin | None
    duration: float
    error: str | None = None
    error_type: str | None = None
    hint: str | None = None
    status: int | None = None
    usage: Usage | None = None
    served_model: str | None = None
    retry_after: float | None = None

    def __str__(self) -> str:
        who = f"{self.backend} [{self.origin}]" if self.origin is not None else self.backend
        return f"{who}: {self.error or 'answered'}"

    def to_json(self) -> dict[str, Any]:
        """Return the attempt as JSON-ready data."""
        return {
            "backend": self.backend,
            "model": self.model,
            "plugin": self.origin.plugin if self.origin else None,
            "distribution": self.origin.distribution if self.origin else None,
            "version": self.origin.version if self.origin else None,
            "duration": round(self.duration, 6),
            "ms": round(self.duration * 1000, 3),
            "error": self.error,
            "error_type": self.error_type,
            "status": self.status,
            "retry_after": self.retry_after,
            "served_model": self.served_model,
            **(_NO_USAGE if self.usage is None else self.usage.to_json()),
        }


@dataclass(frozen=True, repr=False, eq=False)
class Completion(Value):
    """An answer, and who gave it.

    A plug-in that answers by itself needs to give `text` only; the host fills in the rest.

    Attributes:
        text: the answer.
        backend: name of the backend that the answer came for.
        model: the model that was asked; `None` if the backend takes none.
        origin: the plug-in that answered.
        attempts: every attempt that was made, the one that answered last.
        duration: of the whole request, in seconds.
        route: the decision that led here.
        served_model: the model that the server says it used; `None` if it does not say.
        usage: what the attempt that answered used; `None`: not known.
        asked_backend: the backend that was to answer: the one that the request names, else the first of the route.
        asked_model: the model that was asked for there; `None` if nobody named one.
        fell_back: whether another candidate of the route than the first one answered.
        cut: whether the answer broke off; the last of `attempts` says why.
        finish_reason: why the server ended the answer, in its own word: `stop`, `length` where a limit of tokens
            was reached, `content_filter`; `None`: it does not say.

    """

    text: str
    backend: str = ""
    model: str | None = None
    origin: Origin | None = None
    attempts: tuple[Attempt, ...] = ()
    duration: float = 0.0
    route: Route = field(default_factory=Route)
    served_model: str | None = None
    usage: Usage | None = None
    asked_backend: str | None = None
    asked_model: str | None = None
    fell_back: bool = False
    cut: bool = False
    finish_reason: str | None = None

    @property
    def plugin(self) -> str | None:
        """Name of the plug-in that answered."""
        return self.origin.plugin if self.origin else None

    @property
    def distribution(self) -> str | None:
        """Name of the distribution whose plug-in answered; `None` if the running program registered it."""
        return self.origin.distribution if self.origin else None

    def to_json(self) -> dict[str, Any]:
        """Return the completion as JSON-ready data."""
        return {
            "text": self.text,
            "backend": self.backend,
            "model": self.model,
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.origin.version if self.origin else None,
            "duration": round(self.duration, 6),
            "asked_backend": self.asked_backend,
            "asked_model": self.asked_model,
            "served_model": self.served_model,
            "fell_back": self.fell_back,
            "cut": self.cut,
            "finish_reason": self.finish_reason,
            "usage": None if self.usage is None else self.usage.to_json(),
            "policy": self.route.origin.plugin if self.route.origin else None,
            "notices": list(self.route.notices),
            "attempts": [attempt.to_json() for attempt in self.attempts],
        }


@dataclass(frozen=True, repr=False, eq=False)
class Step(Value):
    """One step of a recipe.

    Where a recipe leaves a field out, the runner fills it in before any plug-in is asked to run the step.

    Attributes:
        command: a command line for the shell, which may have several lines; or a list of words, the program
            first, which needs no shell.
        description: what it does, for the person who is asked whether to run it.
        cwd: the working directory, relative to that of the run.
        env: environment variables to add; while the step runs, they are in its context's `env` as well.
        timeout: seconds after which it is ended.
        confirm: whether it needs a yes of its own: "run all the rest" and `--yes` are not enough.
        shell: the shell that takes the command line; `bash` or `bash -eu` for example.

    """

    command: str | Sequence[str]
    description: str = ""
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=_no_options)
    timeout: float | None = None
    confirm: bool = False
    shell: str | None = None

    @property
    def command_line(self) -> str:
        """The command as one line for a POSIX shell; that of a list has each word quoted."""
        if isinstance(self.command, str):
            return self.command
        import shlex

        return shlex.join(self.command)


@dataclass(frozen=True, repr=False, eq=False)
class StepContext(Value):
    """What surrounds a step while it runs.

    Attributes:
        recipe: name of the recipe that the step belongs to.
        number: its position, from 1.
        total: how many steps there are.
        env: the environment that the step gets.
        output: takes a copy of what the step writes; `None`: nobody wants one.

    """

    recipe: str
    number: int
    total: int
    env: Mapping[str, str]
    output: Callable[[bytes], object] | None = None


@dataclass(frozen=True, repr=False, eq=False)
class StepResult(Value):
    """How a step ended.

    Attributes:
        status: exit status; 128+N if signal N ended it, 124 if it took too long.
        origin: the plug-in that ran it; the host fills it in.
        interrupted_by: number of the signal that this program got meanwhile. After SIGINT the user is asked
            whether to go on, after another one the run ends; 0: none came.
        note: what else to tell of how it ended, in a few words.

    """

    status: int
    origin: Origin | None = None
    interrupted_by: int = 0
    note: str = ""
