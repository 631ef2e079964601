"""Backends and recipes: the classes that plug-in authors use, what a host makes of their objects, and its catalogs.

Also the cache of the models that backends list.
"""

import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Final, Generic, TypeVar

from llm._dataclasses import dataclass, field
from llm._state import cached, remove_from_cache, store_in_cache
from llm.hooks import Origin
from llm.hooks._entrypoints import EntryPoint
from llm.types import Answer, Attachment, Call, FrozenMapping, Request, Step

if TYPE_CHECKING:
    from llm.parameters import Parameter


_NOBODY: Final = Origin("")
_VARIABLE: Final = r"\$(\w+)"

#: Metadata of requests for the log of conversations, on which no answer depends.
_LOGGED: Final = frozenset({"conversation", "conversation_name", "earlier", "turn"})

#: A function of the prompt or the goal, and of more by name. `Callable[..., Any]` would leave the argument of a lambda
#: without a type for Pyright, and mypy cannot infer a lambda from the second form alone.
Function = Callable[[str], Any] | Callable[Concatenate[str, ...], Any]

#: Fields of a `RegisteredBackend` that manifests do not have.
_NO_FACTS: Final = frozenset({"origin", "complete", "load", "check", "list_models", "identity"})


class Backend:
    """Answers prompts: `Backend("name", run)`, or a subclass that defines `run`, `stream` or both.

    `run` gets what its signature names: the prompt alone, or also `model` (`str | None`), `options` (a mapping of named
    values), `request` (the whole `llm.Request`) and `call` (the `llm.Call`, with deadlines). One that does not take the
    request gets a conversation as plain text. A subclass that an entry point names is instantiated without arguments.

    Args:
        name: its name for users and in the configuration.
        run: `run(prompt) -> str`; by default the method of a subclass.
        stream: like `run`, but returns an iterator of texts, whose last item may be a `Completion`.
        description: one line for lists.
        models: models that it offers, for lists.
        local: whether prompts stay on this machine.
        ready_env: environment variables of which one must be set for requests that do not name the backend; empty: it
            is always ready.
        ready_files: paths of files that make it ready as well, with `~`, `*` and variables (`$XDG_DATA_HOME/acme/*`);
            the first one whose variables are all set counts.
        secret_env: environment variables that hold its secrets; child processes do not get them.
        options: its options (`llm.Parameter`): it gets these alone, checked and with defaults; empty: it gets any
            options as they were given.
        known_options: options that it takes among others, with the type of each (`number`, `integer`, `boolean`,
            `text`, `list`, `object` or `anything`), for help and completion.
        check: `check(call) -> str | None` asks the service, and returns why it would not answer now.
        list_models: `list_models(call) -> Iterable[str]` asks the service for its models.
        identity: `identity() -> str` returns what answers depend on besides the request, for caches.
    """

    # On the class, so that a subclass with an `__init__` of its own need not call this one.
    name: str = ""
    description: ClassVar[str] = ""
    models: ClassVar[tuple[str, ...]] = ()
    local: ClassVar[bool] = False
    ready_env: ClassVar[tuple[str, ...]] = ()
    ready_files: ClassVar[tuple[str, ...]] = ()
    secret_env: ClassVar[tuple[str, ...]] = ()
    options: "ClassVar[tuple[Parameter, ...]]" = ()
    known_options: ClassVar[Mapping[str, str]] = FrozenMapping()

    def __init__(
        self,
        name: str | None = None,
        run: Function | None = None,
        *,
        stream: Function | None = None,
        description: str | None = None,
        models: Iterable[str] | None = None,
        local: bool | None = None,
        ready_env: Iterable[str] | None = None,
        ready_files: Iterable[str] | None = None,
        secret_env: Iterable[str] | None = None,
        options: "Iterable[Parameter] | None" = None,
        known_options: Mapping[str, str] | None = None,
        check: Callable[[Call], str | None] | None = None,
        list_models: Callable[[Call], Iterable[str]] | None = None,
        identity: Callable[[], str] | None = None,
    ) -> None:
        given = {
            "name": name,
            "run": run,
            "stream": stream,
            "check": check,
            "list_models": list_models,
            "identity": identity,
            "description": description,
            "models": models,
            "local": local,
            "ready_env": ready_env,
            "ready_files": ready_files,
            "secret_env": secret_env,
            "options": options,
            "known_options": known_options,
        }
        vars(self).update({key: value for key, value in given.items() if value is not None})

    # With `*args` and `**kwargs`, type checkers let a subclass take further arguments.
    def run(self, prompt: str, *args: Any, **kwargs: Any) -> Any:
        """Return the answer to `prompt`, as text or as a `Completion`.

        Any exception sends the router to the next backend. A `BackendError` that is `transient` is tried again
        first.
        """
        raise NotImplementedError(f"{type(self).__qualname__} does not define run")

    def stream(self, prompt: str, *args: Any, **kwargs: Any) -> Any:
        """Yield the answer in pieces as they come; unless overridden, in the one piece that `run` returns."""
        yield self.run(prompt, *args, **kwargs)

    def check(self, call: Call) -> str | None:  # noqa: ARG002 - for those that override it
        """Ask the service, and return in a few words why it would not answer now; `None` if it would.

        Override it if a variable alone does not make the backend ready. An exception counts as a reason, too.
        """
        return None

    def list_models(self, call: Call) -> Iterable[str]:  # noqa: ARG002 - for those that override it
        """Return the models that the service has now."""
        return self.models

    def identity(self) -> str:
        """Return what answers depend on besides the request: the server or its default model, as they are set now.

        Caches return a stored answer if both the request and this text are equal. It is never shown.
        """
        return ""


class Recipe:
    """Turns a goal into shell steps: `Recipe("name", run)`, or a subclass that defines `run`.

    Args:
        name: its name for users.
        run: `run(goal) -> list[str]`; by default the method of a subclass. Parameters come as further arguments.
        description: one line for lists.
        parameters: its parameters besides the goal.
    """

    name: str = ""
    description: ClassVar[str] = ""
    parameters: "ClassVar[tuple[Parameter, ...]]" = ()

    def __init__(
        self,
        name: str | None = None,
        run: Function | None = None,
        *,
        description: str | None = None,
        parameters: "Iterable[Parameter] | None" = None,
    ) -> None:
        given = {"name": name, "run": run, "description": description, "parameters": parameters}
        vars(self).update({key: value for key, value in given.items() if value is not None})

    def run(self, goal: str, *args: Any, **kwargs: Any) -> Any:
        """Return the command lines or `Step` objects that reach `goal`. Quote what goes into them: see `quote`."""
        raise NotImplementedError(f"{type(self).__qualname__} does not define run")


@dataclass(frozen=True)
class RegisteredBackend:
    """A backend as the host uses it, and as hooks get it.

    Attributes:
        name: its name for users and in the configuration.
        description: one line for lists.
        models: models that it offers, for lists.
        local: whether prompts stay on this machine.
        ready_env: environment variables of which one must be set for requests that do not name it.
        ready_files: paths of files that make it ready as well; the first one whose variables are all set counts.
        secret_env: environment variables that hold its secrets.
        streams: whether answers come in pieces.
        origin: its plug-in.
        complete: `complete(request, call)` returns its `Answer`.
        load: imports its plug-in and returns the backend of that; `None` if it is imported.
        check: `check(call)` asks the service, and returns why it would not answer; `None` if it cannot be asked.
        list_models: `list_models(call)` asks the service for its models; `None` if it cannot be asked.
        identity: `identity()` returns what answers depend on besides the request, for caches.
        options: the options that it declares; empty: it takes any.
        known_options: the types of options that it takes among others, by name.
    """

    name: str
    description: str = ""
    models: tuple[str, ...] = ()
    local: bool = False
    ready_env: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()
    streams: bool = False
    origin: Origin = _NOBODY
    complete: Callable[[Request, Call], Answer] = field(
        default=lambda _request, _call: Answer(""), repr=False, compare=False
    )
    load: "Callable[[], RegisteredBackend] | None" = field(default=None, repr=False, compare=False)
    check: Callable[[Call], str | None] | None = field(default=None, repr=False, compare=False)
    list_models: Callable[[Call], Iterable[str]] | None = field(default=None, repr=False, compare=False)
    identity: Callable[[], str] = field(default=str, repr=False, compare=False)
    ready_files: tuple[str, ...] = ()
    options: "tuple[Parameter, ...]" = ()
    known_options: Mapping[str, str] = FrozenMapping()

    @property
    def option_help(self) -> Mapping[str, str]:
        """By option, a line of help: for those that it declares, else for those that it knows."""
        declared = {one.name: one.help for one in self.options}
        return declared or {name: f"[{kind}]" for name, kind in self.known_options.items()}

    def is_ready(self, environ: Mapping[str, str]) -> bool:
        """Whether requests that do not name the backend may be sent to it."""
        return self.is_set_up(environ) or self._has_file(environ)

    def is_set_up(self, environ: Mapping[str, str]) -> bool:
        """Whether a variable or a stored key makes the backend ready, or it needs nothing; files do not count."""
        if not self.ready_env:
            return not self.ready_files
        return any(environ.get(name) for name in self.ready_env) or self._has_stored_key(environ)

    @property
    def key_names(self) -> tuple[str, ...]:
        """The names in key stores of the keys of which one makes it ready."""
        from llm._keys import key_name

        return tuple(key_name(variable) for variable in self.ready_env if variable in self.secret_env)

    @property
    def setup(self) -> str:
        """How to make it ready, in a few words: the variables to set, or the commands to run."""
        commands = [f"`ai-cli keys set {name}`" for name in self.key_names]
        ways = [f"set {' or '.join(self.ready_env)}"] if self.ready_env else []
        ways += [f"run {' or '.join(commands)}"] if commands else []
        place = self._place(os.environ)
        return ", or ".join([*ways, f"have a file {place}"] if place is not None else ways)

    def _place(self, environ: Mapping[str, str]) -> str | None:
        """Return the first of `ready_files` whose variables are all set."""
        return next(
            (one for one in self.ready_files if all(environ.get(name) for name in re.findall(_VARIABLE, one))), None
        )

    def _has_file(self, environ: Mapping[str, str]) -> bool:
        import glob

        place = self._place(environ)
        if place is None:
            return False
        place = re.sub(_VARIABLE, lambda name: glob.escape(environ[name[1]]), place)
        return bool(glob.glob(os.path.expanduser(place)))

    def cache_key(self, request: Request, without: Iterable[str] = ()) -> str | None:
        """Return a digest of all that an answer to a request depends on, as the key of a cache.

        Args:
            request: the request as it is sent.
            without: names of metadata to leave out, the options of the cache itself for example.

        Returns:
            The digest; `None` if the request has values that cannot be compared.
        """
        import hashlib
        import json

        left_out = _LOGGED.union(without)
        # Other objects in the metadata are of plug-ins, and are not sent.
        plain = (str, int, float, list, dict, type(None))
        metadata = {
            name: one for name, one in request.metadata.items() if name not in left_out and isinstance(one, plain)
        }
        messages = [
            [message.role, [part if isinstance(part, str) else _digest_of(part) for part in message.content]]
            for message in request.messages
        ]
        backend = (self.name, self.origin.plugin, self.origin.distribution, self.identity())
        known = [*backend, request.model, request.strict, dict(request.options), metadata, messages]
        try:
            return hashlib.sha256(json.dumps(known, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
        except (TypeError, ValueError):
            return None

    def _has_stored_key(self, environ: Mapping[str, str]) -> bool:
        from llm._keys import key_name, stored_names

        names = stored_names(environ)
        return bool(names) and any(key_name(variable) in names for variable in self.ready_env)

    def facts(self) -> dict[str, Any]:
        """Return what `from_facts` takes as JSON-ready data, without empty values."""
        facts = {key: value for key, value in vars(self).items() if value and key not in _NO_FACTS}
        return {**facts, "options": [one.to_json() for one in self.options]} if self.options else facts

    @classmethod
    def from_facts(
        cls, facts: Mapping[str, Any], origin: Origin, load: "Callable[[], RegisteredBackend]"
    ) -> "RegisteredBackend":
        """Return the backend that a manifest describes; `load` imports its plug-in."""
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()
        }
        if "options" in known:
            known["options"] = _parameters(known["options"])
        return cls(
            **known,
            origin=origin,
            complete=lambda *asked: load().complete(*asked),
            load=load,
            identity=lambda: load().identity(),
        )


def _parameters(facts: "Iterable[Mapping[str, Any]]") -> "tuple[Parameter, ...]":
    """Return the parameters in a manifest; few plug-ins declare any, so that their class is imported late."""
    if not facts:
        return ()
    from llm.parameters import Parameter

    return tuple(map(Parameter.from_json, facts))


def _digest_of(attachment: Attachment) -> list[Any]:
    import hashlib

    digest = None if attachment.data is None else hashlib.sha256(attachment.data).hexdigest()
    return [attachment.media_type, digest, attachment.url, attachment.name]


@dataclass(frozen=True)
class RegisteredRecipe:
    """A recipe as the host uses it.

    Attributes:
        name: its name for users.
        description: one line for lists.
        parameters: its parameters besides the goal.
        origin: its plug-in.
        steps: `steps(goal, parameters)` returns its steps.
    """

    name: str
    description: str = ""
    parameters: "tuple[Parameter, ...]" = ()
    origin: Origin = _NOBODY
    steps: Callable[[str, Mapping[str, Any]], tuple[Step, ...]] = field(
        default=lambda _goal, _parameters: (), repr=False, compare=False
    )

    def facts(self) -> dict[str, Any]:
        """Return what `from_facts` takes as JSON-ready data, without empty values."""
        parameters = [parameter.to_json() for parameter in self.parameters]
        facts = {"name": self.name, "description": self.description, "parameters": parameters}
        return {key: value for key, value in facts.items() if value}

    @classmethod
    def from_facts(
        cls, facts: Mapping[str, Any], origin: Origin, load: "Callable[[], RegisteredRecipe]"
    ) -> "RegisteredRecipe":
        """Return the recipe that a manifest describes; `load` imports its plug-in."""
        parameters, description = _parameters(facts.get("parameters", ())), facts.get("description", "")
        return cls(facts["name"], description, parameters, origin, lambda *asked: load().steps(*asked))


Contribution = TypeVar("Contribution", bound=RegisteredBackend | RegisteredRecipe)


class Offer(Generic[Contribution]):
    """One backend or recipe of a host, which becomes an object when it is used.

    Args:
        name: its name.
        plugin: the name of its plug-in.
        secret_env: the environment variables that it declares as secret.
        make: returns the object.
    """

    def __init__(self, name: str, plugin: str, secret_env: Iterable[str], make: Callable[[], Contribution]) -> None:
        self.name = name
        self.plugin = plugin
        self.secret_env = secret_env
        self._make = make

    @classmethod
    def of(cls, one: Contribution) -> "Offer[Contribution]":
        """Return the offer of an object that exists."""
        return cls(one.name, one.origin.plugin, getattr(one, "secret_env", ()), lambda: one)

    @functools.cached_property
    def made(self) -> Contribution:
        """The object."""
        return self._make()


class Catalog(Mapping[str, Contribution], Generic[Contribution]):
    """All backends, or all recipes, of a host; as a mapping, those in use by name.

    Those of plug-ins that are not imported become objects when they are asked for.

    Args:
        in_use: by name, those that are in use, in the order in which they are asked.
        hidden: those whose name another plug-in has.
        indexed: names of further ones, each of which one plug-in alone has, with the entry point of that.
        find: `find(name, entry)` returns one of these.
        find_all: returns the catalog that has all of these in use.
        secret_env: the environment variables that these declare as secret.
    """

    def __init__(
        self,
        in_use: Mapping[str, Offer[Contribution]],
        hidden: Sequence[Offer[Contribution]],
        indexed: Mapping[str, EntryPoint],
        find: Callable[[str, EntryPoint], Contribution],
        find_all: "Callable[[], Catalog[Contribution]]",
        secret_env: frozenset[str],
    ) -> None:
        self._in_use = in_use
        self._hidden = hidden
        self._indexed = indexed
        self._find = find
        self._found: dict[str, Contribution] = {}
        self._find_all = find_all
        self._secret_env = secret_env

    @functools.cached_property
    def _all(self) -> Mapping[str, Offer[Contribution]]:
        return self._find_all()._in_use if self._indexed else self._in_use

    @functools.cached_property
    def secret_env(self) -> frozenset[str]:
        """The environment variables that any of them, hidden ones too, declares as secret."""
        offers = (*self._in_use.values(), *self._hidden)
        return self._secret_env.union(name for one in offers for name in one.secret_env)

    @functools.cached_property
    def active(self) -> tuple[Contribution, ...]:
        """Those that are in use, in the order in which they are asked."""
        return tuple(self.values())

    @functools.cached_property
    def shadowed(self) -> Mapping[str, tuple[Contribution, ...]]:
        """By name, those whose name another plug-in has."""
        found: dict[str, tuple[Contribution, ...]] = {}
        for one in self._hidden:
            found[one.name] = (*found.get(one.name, ()), one.made)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._in_use or name in self._indexed

    def __getitem__(self, name: str) -> Contribution:
        if name not in self._indexed:
            return self._in_use[name].made
        if name not in self._found:
            self._found[name] = self._find(name, self._indexed[name])
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


#: Seconds after which a list of models is outdated.
_FRESH: Final = 24 * 3600.0


@dataclass(frozen=True)
class ListedModels:
    """The models that a backend listed.

    Attributes:
        models: their names, sorted.
        age: seconds since it listed them.
    """

    models: tuple[str, ...]
    age: float = 0.0


def models_of(backend: str, ask: Callable[[], Iterable[str]], *, refresh: bool = False) -> ListedModels:
    """Return the models of a backend: those in the user's cache if they are less than a day old, else those of `ask`.

    Raises:
        Exception: whatever `ask` raises; the cache does not change then.
    """
    known = None if refresh else listed_models(backend)
    if known is not None and known.models and known.age < _FRESH:  # the first one may come at any moment
        return known
    models = tuple(sorted(set(ask())))
    store_in_cache([time.time(), models], "models", backend)
    return ListedModels(models)


def listed_models(backend: str) -> ListedModels | None:
    """Return the models of a backend in the cache, however old; `None` if there are none."""
    try:
        listed, models = cached("models", backend)
        age = time.time() - float(listed)
        # In the future: the clock was wrong, then or now. Such a list would stay up to date for ever.
        return ListedModels(tuple(map(str, models)), age if age >= 0 else _FRESH)
    except (ValueError, TypeError):
        return None


def offered_models(backend: str, declared: Iterable[str]) -> list[str]:
    """Return the models that a backend declares, and those in the cache."""
    known = listed_models(backend)
    return list(dict.fromkeys((*declared, *(known.models if known is not None else ()))))


def forget_models(backend: str) -> None:
    """Remove the models of a backend from the cache."""
    remove_from_cache("models", backend)


def models_like(model: str, backend: str) -> list[str]:
    """Return the models in the cache whose names are close to a given one."""
    import difflib

    known = listed_models(backend)
    return [] if known is None else difflib.get_close_matches(model, known.models, n=3)
