"""The data of the contract: frozen dataclasses, which can be hashed, compared, copied, pickled and shared by threads.

Two classes change: an `Answer` grows while its text comes, and a `Cancellation` may be triggered.
"""

import os
from collections.abc import Callable, Generator, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic, perf_counter_ns
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, get_args

from llm._dataclasses import dataclass, field, hash_of, replace
from llm.errors import BackendTimeoutError, CancelledError, InvalidResultError, with_origin
from llm.hooks import Origin, place_in

K = TypeVar("K")
V_co = TypeVar("V_co", covariant=True)


class FrozenMapping(Mapping[K, V_co]):
    """An immutable, hashable mapping, which is equal to a dict of the same items.

    Lists and dicts among the values stay lists and dicts, so that `json.dumps(dict(mapping))` works; they are copied,
    so that later changes of the originals do not reach the mapping.

    Args:
        items: a mapping, or pairs of key and value.
        **named: further items.
    """

    __slots__ = ("_items",)
    _items: dict[K, V_co]

    def __init__(self, items: Mapping[K, V_co] | Iterable[tuple[K, V_co]] = (), /, **named: V_co) -> None:
        object.__setattr__(self, "_items", {key: _copied(value) for key, value in dict(items, **named).items()})  # type: ignore[arg-type]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot be changed")

    def __getitem__(self, key: K) -> V_co:
        return self._items[key]

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    # A dict's views cannot change it either, and iterating over them calls no Python code for each item.
    def keys(self) -> KeysView[K]:
        """Return a view of its keys."""
        return self._items.keys()

    def values(self) -> ValuesView[V_co]:
        """Return a view of its values."""
        return self._items.values()

    def items(self) -> ItemsView[K, V_co]:
        """Return a view of its items."""
        return self._items.items()

    def __repr__(self) -> str:
        return repr(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMapping):
            return self._items == other._items
        return self._items == other if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return hash_of(self._items)

    def __or__(self, other: Mapping[Any, Any]) -> "FrozenMapping[Any, Any]":
        return FrozenMapping({**self, **other}) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[Any, Any]) -> "FrozenMapping[Any, Any]":
        return FrozenMapping({**other, **self}) if isinstance(other, Mapping) else NotImplemented

    def __copy__(self) -> "FrozenMapping[K, V_co]":
        return self

    def __reduce__(self) -> tuple[type, tuple[dict[K, V_co]]]:
        return type(self), (self._items,)


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if type(value) is list else value


Role: TypeAlias = Literal["system", "user", "assistant"]
ROLES: Final = get_args(Role)

_NOTHING: Final[FrozenMapping[str, Any]] = FrozenMapping()


@dataclass(frozen=True)
class Attachment:
    """A file in a message: an image, a document.

    Attributes:
        media_type: its type, `image/png` for example.
        data: its content; `None`: it is at `url`.
        url: its address.
        name: name of the file, for users.
    """

    media_type: str
    data: bytes | None = field(default=None, repr=False)
    url: str | None = None
    name: str = ""


#: The types of the parts of a message's content.
PART_TYPES: Final = (str, Attachment)


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: its parts in order: texts and attachments. A single part may be given as it is.
    """

    role: Role
    content: tuple[str | Attachment, ...]

    def __init__(self, role: Role, content: str | Attachment | Iterable[str | Attachment] = ()) -> None:
        parts = (content,) if isinstance(content, PART_TYPES) else tuple(content)
        # Assignments are refused, as the class is frozen.
        self.__dict__.update(role=role, content=parts)

    @property
    def text(self) -> str:
        """Its texts, joined."""
        if len(self.content) == 1 and type(self.content[0]) is str:  # nearly always
            return self.content[0]
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """Its attachments, in order."""
        if len(self.content) == 1 and type(self.content[0]) is str:
            return ()
        return tuple([part for part in self.content if isinstance(part, Attachment)])


@dataclass(frozen=True)
class Request:
    """One request to a backend: a prompt (`Request("text")`), or a conversation that ends with one.

    Attributes:
        messages: the conversation, oldest first; a text, one message or any iterable of these may be given.
        model: the requested model; `None` leaves it to the policy or the backend.
        backend: the one backend to use; `None` leaves it to the policy.
        local: whether the prompt must not leave this machine.
        options: further named values for the backend (`temperature` for example).
        timeout: seconds for the whole request, all attempts and waiting included; `None`: 120 until an answer has
            begun.
        strict: whether only the requested backend and model may answer.
        fallback: whether others may answer if `backend` fails.
        max_attempts: number of attempts over all backends; `None`: 6.
        cooldown: whether backends that failed often are left out for a while.
        metadata: named values for plug-ins and backends. Backends that are able to follow `schema`, a JSON Schema for
            the answer, and with `thoughts` true put the model's thoughts into the answer, between `<think>` tags.
    """

    messages: tuple[Message, ...]
    model: str | None = None
    backend: str | None = None
    local: bool = False
    options: Mapping[str, Any] = _NOTHING
    timeout: float | None = None
    strict: bool = False
    fallback: bool = False
    max_attempts: int | None = None
    cooldown: bool = True
    metadata: Mapping[str, Any] = _NOTHING

    def __init__(
        self,
        messages: str | Message | Iterable[str | Message],
        model: str | None = None,
        backend: str | None = None,
        local: bool = False,
        options: Mapping[str, Any] = _NOTHING,
        timeout: float | None = None,
        strict: bool = False,
        fallback: bool = False,
        max_attempts: int | None = None,
        cooldown: bool = True,
        metadata: Mapping[str, Any] = _NOTHING,
    ) -> None:
        self.__dict__.update(
            messages=(Message("user", messages),) if isinstance(messages, str) else _messages(messages),
            model=model,
            backend=backend,
            local=local,
            options=options if type(options) is FrozenMapping else FrozenMapping(options),
            timeout=timeout,
            strict=strict,
            fallback=fallback,
            max_attempts=max_attempts,
            cooldown=cooldown,
            metadata=metadata if type(metadata) is FrozenMapping else FrozenMapping(metadata),
        )

    @property
    def prompt(self) -> str:
        """The text of the last user message."""
        messages = self.messages
        if len(messages) == 1 and messages[0].role == "user":  # nearly always
            return messages[0].text
        return next((message.text for message in reversed(messages) if message.role == "user"), "")

    @property
    def system(self) -> str | None:
        """The system prompt; `None` if there is none."""
        texts = [message.text for message in self.messages if message.role == "system"]
        return "\n\n".join(texts) if texts else None

    @property
    def is_plain(self) -> bool:
        """Whether it is a single user message without attachments, so that `prompt` is all of it."""
        return len(self.messages) == 1 and self.messages[0].role == "user" and not self.messages[0].attachments

    @property
    def as_text(self) -> str:
        """The whole conversation as plain text, for backends that take nothing else."""
        if self.is_plain:
            return self.prompt
        return "\n\n".join(f"{one.role.capitalize()}: {_as_text(one)}" for one in self.messages)

    def with_prompt(self, text: str) -> "Request":
        """Return the request with another text in its last user message; its attachments stay."""
        for index in range(len(self.messages) - 1, -1, -1):
            message = self.messages[index]
            if message.role == "user":
                changed = Message("user", (text, *message.attachments))
                return replace(self, messages=(*self.messages[:index], changed, *self.messages[index + 1 :]))
        return replace(self, messages=(*self.messages, Message("user", text)))

    def with_system(self, text: str) -> "Request":
        """Return the request with this system prompt in place of all others."""
        others = tuple(message for message in self.messages if message.role != "system")
        return replace(self, messages=(Message("system", text), *others))


def _messages(given: Any) -> tuple[Any, ...]:
    if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping | Message):
        return (given,)  # one message, or something else, which the router refuses
    return tuple(Message("user", one) if isinstance(one, str) else one for one in given)


def _as_text(message: Message) -> str:
    return "".join(
        part if isinstance(part, str) else f"[attachment: {part.name or part.url or part.media_type}]"
        for part in message.content
    )


class Cancellation:
    """A handle to cancel calls: `complete(request, cancellation=handle)`, and `cancel()` by another thread or a signal.

    A cancelled call ends with a `CancelledError`: no further backend is called, and connections are closed.

    Attributes:
        reason: why it was cancelled; `None`: it was not.
    """

    def __init__(self) -> None:
        from threading import RLock  # few prompts have one

        self.reason: str | None = None
        # Held while callbacks run, so that none runs after its `with` block. Reentrant: a signal handler may cancel
        # while the thread that it interrupted enters such a block.
        self._lock = RLock()
        self._callbacks: dict[object, Callable[[], object]] = {}

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.reason is not None

    def cancel(self, reason: str = "the request was cancelled") -> None:
        """Cancel all calls with this handle, present and future ones; only the first reason counts.

        Args:
            reason: a sentence for the error.
        """
        with self._lock:
            if self.reason is None:
                self.reason = reason
            while self._callbacks:
                callback = self._callbacks.pop(next(iter(self._callbacks)))
                try:
                    callback()
                except Exception:
                    import logging

                    name = getattr(callback, "__qualname__", repr(callback))
                    logging.getLogger(__name__).exception("%s failed to end a cancelled call", name)

    def check(self) -> None:
        """Raise an error if it was cancelled.

        Raises:
            CancelledError: it was.
        """
        if self.reason is not None:
            raise CancelledError(self.reason)

    @contextmanager
    def on_cancel(self, callback: Callable[[], object]) -> Iterator[None]:
        """Call a function as soon as it is cancelled, within a `with` block.

        Args:
            callback: ends quickly what the block waits for. The cancelling thread calls it; if it was cancelled
                before, it is called at once.
        """
        with self._lock:
            mark = object()  # a callback may be registered twice, and need not be hashable
            self._callbacks[mark] = callback
            if self.reason is not None:
                self.cancel(self.reason)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.pop(mark, None)

    def wait(self, seconds: float) -> bool:
        """Wait until it is cancelled, but not longer than some seconds; return whether it is cancelled."""
        from threading import Lock

        # No Event: a signal handler that sets one may wait for a lock that the interrupted thread holds.
        over = Lock()
        over.acquire()
        with self.on_cancel(over.release):
            over.acquire(timeout=seconds)
        return self.cancelled


@dataclass(frozen=True)
class Call:
    """The facts of one call of a backend besides its request. Moments are those of `time.monotonic()`.

    Attributes:
        attempt: number of the attempt, from 1.
        stream: whether the text is wanted as it comes.
        deadline: the moment at which the whole answer must be there; `None`: as long as it keeps coming.
        first_deadline: the moment at which it must have begun: a silent backend must not use up the time of the next
            ones.
        silence: seconds to wait for each further piece; `None`: no limit.
        key: returns the key of a name from the user's stores, `None` if there is none; `None`: there is no store.
        turn: its turn among many requests: a backend over HTTP passes the headers of each answer to `turn.heed`, as
            they may report the rest of the server's limits; `None`: requests are not paced.
        cancellation: the caller's handle to cancel it at any time; `None`: it cannot be cancelled.
        clock: returns the present moment.
    """

    attempt: int = 1
    stream: bool = False
    deadline: float | None = None
    first_deadline: float | None = None
    silence: float | None = None
    key: Callable[[str], str | None] | None = field(default=None, repr=False, compare=False)
    turn: "Turn | None" = field(default=None, repr=False, compare=False)
    cancellation: Cancellation | None = field(default=None, repr=False, compare=False)
    clock: Callable[[], float] = field(default=monotonic, repr=False, compare=False)

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled. Any exception then ends the request; no further backend is called."""
        return self.cancellation is not None and self.cancellation.cancelled

    def on_cancel(self, callback: Callable[[], object]) -> AbstractContextManager[None]:
        """Call a function as soon as it is cancelled, within a `with` block; see `Cancellation.on_cancel`.

        Args:
            callback: ends what the block waits for: closes a connection, kills a process.
        """
        return nullcontext() if self.cancellation is None else self.cancellation.on_cancel(callback)

    def wait(self, heard: float | None = None) -> float | None:
        """Return the seconds to wait for the next part of the answer; `None`: for ever, 0 or less: the time is over.

        Args:
            heard: the moment of the latest part of the answer; `None`: it has not begun.
        """
        if self.cancelled:
            return 0.0
        ends = [self.deadline, self.first_deadline if heard is None else None]
        if heard is not None and self.silence is not None:
            ends.append(heard + self.silence)
        known = [end for end in ends if end is not None]
        return min(known) - self.clock() if known else None


class Turn(Protocol):
    """The turn of one request among many."""

    def begin(self, call: Call) -> Call:
        """Wait for the turn, and return the call with its deadlines moved by that time; the host calls this."""

    def heed(self, headers: Mapping[str, str]) -> None:
        """Learn the rest of the server's limits from the headers of its answer."""


@dataclass(frozen=True)
class Usage:
    """The tokens and the cost of an attempt.

    Attributes:
        input_tokens: tokens of the prompt.
        output_tokens: tokens of the answer.
        cost: their price, in the currency of the server or of the configured prices; `None`: not known.
        estimated: whether the tokens are an estimate, because the server reported none, or the cost is, because the
            price of some of them is not known.
        cached_tokens: tokens of the prompt that were read from the server's cache.
        cache_write_tokens: tokens of the prompt that were written to it.
        reasoning_tokens: tokens of the answer that were thoughts, as far as the server counts them.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    estimated: bool = False
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.input_tokens + self.output_tokens

    def to_json(self) -> dict[str, Any]:
        """Return the usage as JSON-ready data."""
        return {"tokens": self.tokens, **vars(self)}


@dataclass(frozen=True)
class Candidate:
    """A backend to try.

    Attributes:
        backend: its name.
        model: its model, unless the request names one.
        reason: why the policy chose it.
    """

    backend: str
    model: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class Rejection:
    """A backend that the policy left out.

    Attributes:
        backend: its name.
        reason: why.
        configured: whether the user named this backend, and gets a notice.
    """

    backend: str
    reason: str
    configured: bool = True


@dataclass(frozen=True)
class Route:
    """A routing policy's decision.

    Attributes:
        candidates: the backends to try, in order.
        rejected: the backends left out, with reasons.
        notices: lines for the user.
        origin: the policy; set by the host.
    """

    candidates: tuple[Candidate, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    notices: tuple[str, ...] = ()
    origin: Origin | None = None


_NO_ROUTE: Final = Route()


@dataclass(frozen=True)
class Attempt:
    """One try of one backend; a retry is an attempt of its own.

    Attributes:
        backend: its name.
        model: the requested model.
        origin: the plug-in that answered or failed; `None` if no plug-in took the request.
        duration: in seconds.
        error: why it did not answer, in one line; `None` if it did.
        error_type: class name of the exception.
        hint: the remedy for the error.
        status: the HTTP status with which the server refused, if it did.
        usage: tokens and cost; `None`: not known.
        served_model: the model that the server reports.
        retry_after: seconds that the server asks to wait before the next attempt.
        place: file and line of an unexpected error in the plug-in's code.
        ended: the moment at which it ended, in seconds since the epoch; 0: not known.
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
    place: str | None = None
    ended: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        who = f"{self.backend} [{self.origin}]" if self.origin is not None else self.backend
        where = f" ({self.place})" if self.place else ""
        return f"{who}: {self.error or 'answered'}{where}"

    def to_json(self) -> dict[str, Any]:
        """Return the attempt as JSON-ready data."""
        unknown = {**dict.fromkeys(Usage().to_json()), "estimated": False}
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
            "place": self.place,
            "status": self.status,
            "retry_after": self.retry_after,
            "served_model": self.served_model,
            **(unknown if self.usage is None else self.usage.to_json()),
        }


@dataclass(frozen=True)
class Completion:
    """An answer, and the plug-in that answered.

    Attributes:
        text: the answer; a plug-in that answers by itself sets this alone, and the host sets the rest.
        backend: name of the backend.
        model: the model that the backend was called with; `None` if it takes none.
        origin: the plug-in that answered.
        attempts: all attempts, the one that answered last.
        duration: of the whole request, in seconds.
        route: the policy's decision.
        served_model: the model that the server reports; `None` if it reports none.
        usage: tokens and cost of the attempt that answered; `None`: not known.
        asked_backend: the intended backend: the one that the request names, else the first of the route.
        asked_model: the intended model there; `None` if none was named.
        fell_back: whether another candidate of the route than the first one answered.
        cut: whether the answer broke off; the last of `attempts` has the reason.
        finish_reason: why the server ended the answer, in its own word: `stop`, `length` at a limit of tokens,
            `content_filter`; `None`: it reports no reason.
        prepared_by: the plug-ins that changed the request before it was sent, in order.
        notices: lines for the user about how it was answered.
    """

    text: str
    backend: str = ""
    model: str | None = None
    origin: Origin | None = None
    attempts: tuple[Attempt, ...] = ()
    duration: float = 0.0
    route: Route = _NO_ROUTE
    served_model: str | None = None
    usage: Usage | None = None
    asked_backend: str | None = None
    asked_model: str | None = None
    fell_back: bool = False
    cut: bool = False
    finish_reason: str | None = None
    prepared_by: tuple[Origin, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def plugin(self) -> str | None:
        """Name of the plug-in that answered."""
        return self.origin.plugin if self.origin else None

    @property
    def distribution(self) -> str | None:
        """Name of the distribution whose plug-in answered; `None` if the running program registered it."""
        return self.origin.distribution if self.origin else None

    @property
    def why_unfinished(self) -> str | None:
        """Why the answer is incomplete, in words; `None`: it is complete, or its server reports no reason."""
        reason = (self.finish_reason or "").casefold()
        if is_finished(reason):
            return None
        other = (
            "a filter of the server ended it" if is_filter(reason) else "its server ended it for a reason of its own"
        )
        return f"{_UNFINISHED.get(reason, other)} (finish_reason {self.finish_reason})"

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
            "prepared_by": [origin.plugin for origin in self.prepared_by],
            "notices": [*self.route.notices, *self.notices],
            "attempts": [attempt.to_json() for attempt in self.attempts],
        }


#: Parts of reasons of servers whose filter ended an answer: `content_filter: SAFETY`, `BLOCKLIST`.
_FILTERS: Final = (
    *("filter", "guardrail", "safety", "recitation", "prohibited", "sensitive", "blocklist", "spii", "policy"),
)
_LIMITS: Final = ("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded")
#: Reasons of servers for an incomplete answer, and their meaning.
_UNFINISHED: Final = {
    **dict.fromkeys(_LIMITS, "it ends where the limit of tokens was reached"),
    "refusal": "the model refused to go on",
    "pause_turn": "its server paused in the middle, and waits to be asked to go on",
}
#: Known reasons for a complete answer. Any other may mean anything, so it is reported.
_FINISHED: Final = frozenset(
    {"", "null", "none", "stop", "stop_sequence", "end_turn", "eos", "eos_token", "end", "done", "finished", "complete"}
    | {"completed", "tool_calls", "tool-calls", "tool_call", "tool_use", "function_call", "finish_reason_unspecified"}
)


def is_finished(reason: str) -> bool:
    """Whether a `finish_reason` means that the answer is whole."""
    return reason.casefold() in _FINISHED


def is_filter(reason: str) -> bool:
    """Whether a `finish_reason` means that a filter of the server ended the answer."""
    return any(word in reason.casefold() for word in _FILTERS)


_NO_FACTS: Final = Completion("")


def _joined(own: Completion, inner: Completion | None) -> Completion:
    """Return the facts of an answer, completed by those of the answer that it was made of."""
    if inner is None or own is inner:
        return own
    return replace(
        own,
        backend=own.backend or inner.backend,
        model=own.model or inner.model,
        served_model=own.served_model or inner.served_model,
        usage=own.usage or inner.usage,
        finish_reason=own.finish_reason or inner.finish_reason,
        notices=own.notices or inner.notices,
    )


#: Seconds after its deadline at which an answer is read no further.
_MOMENT: Final = 0.5


class Answer:
    """The lazy answer of one backend: `text` waits for all of it, and iterating yields the pieces as they come.

    Pieces are stored: it can be read again, and by several readers, one thread at a time.

    Args:
        pieces: the text, or an iterable of texts; its last item may be a `Completion` with model, usage and
            the like (its text is not used).
        origin: the plug-in that answers.
        facts: the facts of an answer that is a text; those of others come with their last item.
        facts_of: `facts_of(completion)` returns the facts of an answer in pieces by its last item, `None` if it has
            no such item; by default they are that item.

    Attributes:
        origin: the plug-in that answers; set by the guard.
        facts: model, usage and the like once it has ended, as a `Completion` whose text and origin are not used;
            `None` before.
        asked: whether a backend was called for it, so that it has a cost; set by the host.
    """

    asked: bool = False

    # On the class: most answers have none.
    _cancellation: Cancellation | None = None
    _until: float | None = None
    _deadline: float | None = None
    _clock: Callable[[], float] = staticmethod(monotonic)

    def __init__(
        self,
        pieces: "str | Completion | Iterable[str | Completion]",
        origin: Origin | None = None,
        facts: Completion | None = None,
        facts_of: "Callable[[Completion | None], Completion]" = lambda completion: completion or _NO_FACTS,
    ) -> None:
        self.origin = origin
        self.facts: Completion | None = None
        self._read: list[str] = []
        self._error: BaseException | None = None
        self._watchers: list[Callable[[int], object]] = []
        self._pieces: Iterator[str | Completion] | None = None
        # The plug-in whose code yields the pieces: the one that answers, or one that changes them on their way.
        self._maker: Origin | None = origin
        if isinstance(pieces, str):
            self.facts = facts or _NO_FACTS
            # A plain text: the methods of a plug-in's subclass of `str` may do anything.
            self._read.append(pieces if type(pieces) is str else str.__str__(pieces))
        elif isinstance(pieces, Completion):
            self.origin = pieces.origin or origin
            self.facts = pieces
            self._read.append(pieces.text)
        else:
            self._pieces = iter(pieces)
            self._facts_of = facts_of

    @property
    def text(self) -> str:
        """The whole text; waits until the answer has ended.

        Raises:
            BaseException: the reason why the answer broke off, with its origin.
        """
        while self.facts is None:
            self._read_on()
        return self.so_far

    @property
    def is_whole(self) -> bool:
        """Whether it has ended, so that `completion` is there."""
        return self.facts is not None

    @property
    def completion(self) -> Completion | None:
        """The completion once the answer has ended, without the facts that only the router knows; `None` before."""
        return None if self.facts is None else self.whole

    @property
    def whole(self) -> Completion:
        """The completion; waits until the answer has ended, as `text` does."""
        while self.facts is None:
            self._read_on()
        return replace(self.facts, text=self.so_far, origin=self.origin)

    @property
    def so_far(self) -> str:
        """The text that has been read."""
        return self._read[0] if len(self._read) == 1 else "".join(self._read)

    def __iter__(self) -> Iterator[str]:
        position = 0
        while position < len(self._read) or self._read_on():
            yield self._read[position]
            position += 1

    def begin(self) -> None:
        """Wait for the first text, or for the end of an answer without any.

        Raises:
            BaseException: the reason why the answer failed before it began, with its origin.
        """
        while not self.so_far and self._read_on():
            pass

    def map(self, function: Callable[[str], str]) -> "Answer":
        """Return an answer with `function` applied to each piece as it comes."""
        return self.pipe(lambda pieces: map(function, pieces))

    def pipe(self, function: Callable[[Iterator[str]], Iterable[str]]) -> "Answer":
        """Return an answer with the pieces that `function` yields for this one's, as they come."""

        def pieces() -> Generator[str | Completion, None, None]:
            try:
                yield from function(iter(self))
                # A function that needs no more pieces has ended the answer; of the rest only the facts count.
                yield self.whole
            finally:
                self.close()

        changed = Answer(pieces(), self.origin)
        changed.asked = self.asked
        changed._maker = None  # set by the guard of the plug-in that returns it
        return changed

    def stamp(self, origin: Origin, *, anew: bool = False) -> "Answer":
        """Set the plug-in that answers, or that changed another answer, unless one is set.

        Args:
            origin: the plug-in.
            anew: whether it replaces one that is set.
        """
        self.origin = origin if anew else self.origin or origin
        self._maker = origin if anew else self._maker or origin
        return self

    def take_over(self, inner: "Answer") -> None:
        """Take missing facts from the answer that this one was made of: its cost remains."""
        self.asked = self.asked or inner.asked
        if self.facts is not None:
            self.facts = _joined(self.facts, inner.facts)
        else:
            facts_of = self._facts_of
            self._facts_of = lambda completion: _joined(facts_of(completion), inner.facts)

    def watch(self, watcher: Callable[[int], object]) -> None:
        """Call a function with the nanoseconds of each further wait for a piece."""
        self._watchers.append(watcher)

    def heed(self, call: Call) -> None:
        """Read no further once a call is cancelled, or its time is over; the host calls this.

        A backend that observes the deadline itself reports it better, so it gets a moment more.
        """
        self._cancellation = call.cancellation
        self._clock = call.clock
        if call.deadline is not None:
            self._deadline = call.deadline + _MOMENT
        self._until = self._deadline if call.first_deadline is None else call.first_deadline + _MOMENT

    def close(self) -> None:
        """Read no further."""
        pieces, self._pieces = self._pieces, None
        close = getattr(pieces, "close", None)
        if close is not None:
            close()

    def _read_on(self) -> bool:
        """Read one more piece; return whether there was one."""
        if self._error is not None:
            raise self._error
        if self._pieces is None:
            return False
        if self._cancellation is not None and self._cancellation.reason is not None:
            self._error = CancelledError(self._cancellation.reason)
        elif self._until is not None and self._clock() >= self._until:
            begun = "did not end" if self.so_far else "did not begin"
            self._error = self._blamed(BackendTimeoutError(f"its answer {begun} within the time of the request"))
        if self._error is not None:
            self.close()
            raise self._error
        start = perf_counter_ns() if self._watchers else 0
        try:
            piece = next(self._pieces)
            if type(piece) is not str:
                piece = self._checked(piece)
        except StopIteration:
            self._pieces, self.facts = None, self._facts_of(None)
            return False
        except BaseException as error:  # noqa: BLE001 - raised again, now and by each further read: the rest is lost
            self._error = self._blamed(error)
            raise self._error  # noqa: B904 - the same exception, unless it had to be replaced
        finally:
            for watcher in self._watchers if start else ():
                watcher(perf_counter_ns() - start)
        if isinstance(piece, Completion):
            self._pieces, self.facts = None, piece
            self.origin = piece.origin or self.origin
            return False
        self._read.append(piece)
        if self._until is not None and piece:
            self._until = self._deadline
        return True

    def _blamed(self, error: BaseException) -> BaseException:
        """Return an exception with the plug-in whose code yields the pieces."""
        maker = self._maker or self.origin
        return error if maker is None else with_origin(error, maker)

    def _checked(self, piece: Any) -> "str | Completion":
        if isinstance(piece, Completion):
            return self._facts_of(piece)
        if isinstance(piece, str):
            return str.__str__(piece)
        error = InvalidResultError(
            "an answer must have pieces of text (str), and a Completion at most as the last: "
            f"{type(piece).__qualname__} is neither"
        )
        error.place = place_in(self._pieces)
        raise error


@dataclass(frozen=True)
class Step:
    """One step of a recipe.

    The runner sets the fields that a recipe leaves out before it calls any plug-in to run the step.

    Attributes:
        command: a command line for the shell, which may have several lines; or a list of words, the program
            first, which needs no shell.
        description: its purpose, for the user who decides whether to run it.
        cwd: the working directory, relative to that of the run.
        env: environment variables to add; while the step runs, they are in its context's `env` as well.
        timeout: seconds after which it is ended.
        confirm: whether it needs a yes of its own: "run all the rest" and `--yes` are not enough.
        shell: the shell for the command line; `bash` or `bash -eu` for example.
    """

    command: str | Sequence[str]
    description: str = ""
    cwd: str | None = None
    env: Mapping[str, str] = _NOTHING
    timeout: float | None = None
    confirm: bool = False
    shell: str | None = None

    def __post_init__(self) -> None:
        # Steps are shared, so they must not change: a plug-in may have given a list, a dict or a `Path`.
        if isinstance(self.command, list):
            object.__setattr__(self, "command", tuple(self.command))
        if type(self.env) is dict:
            object.__setattr__(self, "env", FrozenMapping(self.env))
        cwd: str | os.PathLike[str] | None = self.cwd
        if isinstance(cwd, os.PathLike):
            object.__setattr__(self, "cwd", os.fspath(cwd))

    @property
    def command_line(self) -> str:
        """The command as one line for a POSIX shell, with each word of a list quoted."""
        if isinstance(self.command, str):
            return self.command
        import shlex

        return shlex.join(self.command)


@dataclass(frozen=True)
class StepContext:
    """The surroundings of a step.

    Attributes:
        recipe: name of the recipe.
        number: its position, from 1.
        total: the number of steps.
        env: the environment of the step.
        output: called with a copy of the output of the step; `None`: no copy is wanted.
        cwd: working directory of the run, which the user chose; the step may name another. `None`: it is not known.
    """

    recipe: str
    number: int
    total: int
    env: Mapping[str, str]
    output: Callable[[bytes], object] | None = None
    cwd: str | None = None

    def __post_init__(self) -> None:
        if type(self.env) is dict:
            object.__setattr__(self, "env", FrozenMapping(self.env))


@dataclass(frozen=True)
class StepResult:
    """The end of a step.

    Attributes:
        status: exit status; 128+N if signal N ended it, 124 if it took too long.
        origin: the plug-in that ran it; set by the host.
        interrupted_by: number of the signal that this program got meanwhile; 0: none. After SIGINT the user is asked
            whether to go on, after another one the run ends.
        note: a note on how it ended.
    """

    status: int
    origin: Origin | None = None
    interrupted_by: int = 0
    note: str = ""
