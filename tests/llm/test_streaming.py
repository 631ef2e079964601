"""Answers as they come: who may show them, when another backend may still answer, and what is kept of a cut one."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import llm
from llm import Answer, Completion, Request, Usage, complete, hookimpl, stream
from llm.backends.plugin_sdk import Backend, register_backend
from llm.config import RoutingMode, Settings
from llm.errors import BackendError, UnknownNameError, UsageError
from llm.host import Host
from llm.router import AnswerStream, CutAnswerError, NoAnswerError
from llm.routing.fallback import RetryPolicy, health_of
from llm.testing import host_with
from tests.counting import tick

CHAIN = Settings(routing_mode=RoutingMode.REMOTE, primary_backend="first", fallback_backend="second")
AT_ONCE = RetryPolicy(sleep=lambda seconds: None)


@pytest.fixture
def host() -> Host:
    return host_with()


@pytest.fixture
def told(host: Host) -> list[tuple[Completion | None, Exception | None]]:
    """Return what observers are told."""
    heard: list[tuple[Completion | None, Exception | None]] = []

    class Observer:
        @hookimpl
        def llm_completed(self, completion: Completion | None, error: Exception | None) -> None:
            heard.append((completion, error))

    host.register(Observer(), "observer")
    return heard


def streaming(*pieces: Any, calls: list[str] | None = None) -> Backend:
    """Return a backend that yields pieces; an exception among them is raised."""

    class Streaming(Backend):
        def run(self, prompt: str) -> str:
            return "whole"

        def stream(self, prompt: str) -> Iterator[Any]:
            for piece in pieces:
                if calls is not None:
                    calls.append(str(piece))
                if isinstance(piece, BaseException):
                    raise piece
                yield piece

    return Streaming()


def read(request: Request, host: Host, settings: Settings = CHAIN) -> tuple[list[str], AnswerStream]:
    answer = stream(request, host=host, settings=settings, retries=AT_ONCE)
    return list(answer), answer


def test_texts_come_as_the_backend_yields_them(host: Host, told: Any) -> None:
    calls: list[str] = []
    register_backend(
        "first", streaming("a", "", "b", Completion("", "x", "m", usage=Usage(1, 2)), calls=calls), host=host
    )
    answer = stream(Request("hi"), host=host, settings=CHAIN)
    assert next(answer) == "a"
    assert (calls, answer.completion) == (["a"], None)
    assert list(answer) == ["", "b"]
    completion = answer.completion
    assert completion is not None
    assert (completion.text, completion.model, completion.usage, completion.plugin) == (
        "ab",
        "m",
        Usage(1, 2),
        "backend:first",
    )
    assert [(one.backend, one.error) for one in completion.attempts] == [("first", None)]
    assert not completion.cut
    assert told == [(completion, None)]


def test_until_the_first_text_another_backend_may_answer(host: Host) -> None:
    register_backend("first", streaming("", BackendError("broken", transient=True), "too late"), host=host)
    register_backend("second", streaming("me"), host=host)
    texts, answer = read(Request("hi"), host)
    assert texts == ["me"]
    assert answer.completion is not None
    assert [(one.backend, one.error) for one in answer.completion.attempts] == [
        ("first", "broken"),
        ("first", "broken"),
        ("first", "broken"),
        ("second", None),
    ]
    assert answer.completion.fell_back


def test_after_the_first_text_nobody_else_is_asked_and_what_came_is_kept(host: Host, told: Any) -> None:
    register_backend("first", streaming("a", "b", BackendError("broken", transient=True, hint="wait")), host=host)
    register_backend("second", streaming("me"), host=host)
    answer = stream(Request("hi"), host=host, settings=CHAIN, retries=AT_ONCE)
    assert [next(answer), next(answer)] == ["a", "b"]
    with pytest.raises(CutAnswerError, match=r"the answer was cut short: first .*: broken") as caught:
        next(answer)
    completion = answer.completion
    assert completion is not None
    assert caught.value.completion is completion
    assert (caught.value.hint, caught.value.exit_code) == ("wait", 1)
    assert (completion.text, completion.cut, completion.backend, completion.fell_back) == ("ab", True, "first", False)
    assert [(one.backend, one.error) for one in completion.attempts] == [("first", "broken")]
    assert completion.usage == Usage(1, 1, estimated=True)
    assert completion.to_json()["cut"] is True
    assert told == [(completion, caught.value)]
    assert list(answer) == []


def test_when_nobody_answers_reading_raises_what_complete_raises(host: Host, told: Any) -> None:
    register_backend("first", streaming(ValueError("no")), host=host)
    register_backend("second", streaming(ValueError("no")), host=host)
    with pytest.raises(NoAnswerError, match="none of 2 backends answered") as caught:
        read(Request("hi"), host)
    assert told == [(None, caught.value)]


def test_what_cannot_be_asked_is_refused_at_once(host: Host, told: Any) -> None:
    with pytest.raises(UsageError, match="empty"):
        stream(Request(" "), host=host)
    with pytest.raises(UnknownNameError) as caught:
        stream(Request("hi", backend="nobody"), host=host)
    assert told == [(None, caught.value)]


def test_who_stops_reading_ends_the_backend_too(host: Host, told: Any) -> None:
    ended = threading.Event()

    class Endless(Backend):
        def run(self, prompt: str) -> str:
            return "whole"

        def stream(self, prompt: str) -> Iterator[str]:
            try:
                while True:
                    yield "more "
            finally:
                ended.set()

    register_backend("first", Endless(), host=host)
    answer = stream(Request("hi"), host=host, settings=CHAIN)
    next(answer)
    answer.close()
    assert ended.is_set()
    assert answer.completion is not None
    assert (answer.completion.text, answer.completion.cut) == ("more ", True)
    assert told[0][0] is answer.completion


def test_ctrl_c_passes_and_what_came_is_kept(host: Host) -> None:
    register_backend("first", streaming("a", KeyboardInterrupt()), host=host)
    answer = stream(Request("hi"), host=host, settings=CHAIN)
    next(answer)
    with pytest.raises(KeyboardInterrupt):
        next(answer)
    assert answer.completion is not None
    assert answer.completion.cut


def test_the_deadline_holds_between_pieces(host: Host) -> None:
    now = [0.0]

    class Slow(Backend):
        def run(self, prompt: str) -> str:
            return "whole"

        def stream(self, prompt: str) -> Iterator[str]:
            for _ in range(100):
                now[0] += 5
                yield "x"

    register_backend("first", Slow(), host=host)
    policy = RetryPolicy(clock=lambda: now[0])
    answer = stream(Request("hi", timeout=18), host=host, settings=CHAIN, retries=policy)
    with pytest.raises(CutAnswerError, match="it took longer than 18 s"):
        list(answer)
    assert answer.completion is not None
    assert answer.completion.text == "xxxx"


@pytest.mark.parametrize("piece", [3, None, b"x", Completion(3), Completion("", usage=3)])  # type: ignore[arg-type]
def test_a_piece_that_is_none_is_the_plugins_fault(host: Host, piece: Any) -> None:
    register_backend("first", streaming(piece), host=host)
    with pytest.raises(NoAnswerError, match=r"first \[backend:first .*(must have pieces of text|Completion must be)"):
        read(Request("hi", backend="first"), host)


@pytest.mark.parametrize("result", [3, None, b"x", {"a": 1}])
def test_what_is_no_answer_is_the_plugins_fault(host: Host, result: Any) -> None:
    class Plugin:
        @hookimpl
        def llm_backends(self) -> Backend:
            return Backend("first", lambda prompt: "whole", stream=lambda prompt: result)

    host.register(Plugin(), "odd")
    with pytest.raises(NoAnswerError, match=r"first \[odd .*must return text \(str\), a Completion or pieces of text"):
        read(Request("hi", backend="first"), host)


@pytest.mark.parametrize("result", ["text", Completion("text"), ["te", "xt"], iter(["te", "xt"]), Answer("text")])
def test_an_answer_may_come_in_many_forms(host: Host, result: Any) -> None:
    register_backend("first", lambda prompt: result, host=host)
    texts, answer = read(Request("hi"), host)
    assert "".join(texts) == "text"
    assert answer.completion is not None
    assert answer.completion.plugin == "backend:first"
    register_backend("second", lambda prompt: ["te", "xt"], host=host)
    completion = complete(Request("hi", backend="second"), host=host)
    assert (completion.text, completion.plugin) == ("text", "backend:second")


# Whose answers come whole


def test_a_function_answers_whole(host: Host) -> None:
    register_backend("first", str.upper, host=host)
    texts, answer = read(Request("hi"), host)
    assert texts == ["HI"]
    assert answer.whole_because == "the backend 'first' answers in one piece"


def test_a_plugin_may_stream_some_requests_only(host: Host) -> None:
    class Choosy:
        @hookimpl
        def llm_backends(self) -> Backend:
            return Backend("choosy", self.run, stream=self.run)

        def run(self, prompt: str, model: str | None) -> Any:
            return iter("ab") if model == "m" else "whole"

    host.register(Choosy(), "choosy")
    assert read(Request("hi", "m", "choosy"), host)[0] == ["a", "b"]
    texts, answer = read(Request("hi", "n", "choosy"), host)
    assert texts == ["whole"]
    assert answer.whole_because is not None


def test_an_answer_without_text_is_one(host: Host) -> None:
    register_backend("first", streaming("", ""), host=host)
    texts, answer = read(Request("hi"), host)
    assert texts == [""]
    assert answer.completion is not None
    assert answer.completion.plugin == "backend:first"


def test_who_overrides_only_run_is_not_streamed(host: Host) -> None:
    class Base(Backend):
        def run(self, prompt: str) -> str:
            return "whole"

        def stream(self, prompt: str, model: str | None = None) -> Iterator[str]:
            yield f"streamed with {model}"

    class Guarding(Base):
        def run(self, prompt: str) -> str:
            return super().run(prompt).upper()

    register_backend("base", Base, host=host)
    register_backend("guarding", Guarding, host=host)
    register_backend("bound", Base().run, host=host)
    assert read(Request("hi", "m", "base"), host)[0] == ["streamed with m"]
    assert read(Request("hi", "m", "bound"), host)[0] == ["streamed with m"]
    assert read(Request("hi", "m", "guarding"), host)[0] == ["WHOLE"]


class Wrapper:
    @hookimpl(wrapper=True)
    def llm_complete(self) -> Any:
        answer = yield
        return Completion(answer.text.replace("secret", "***"))


class Cache:
    @hookimpl(tryfirst=True)
    def llm_complete(self) -> str:
        return "from the cache"


class WrapperWithBackends(Wrapper):
    @hookimpl
    def llm_backends(self) -> Backend:
        return Backend("another", str.upper)


@pytest.mark.parametrize(
    ("guard", "text"), [(Wrapper, "a ***"), (WrapperWithBackends, "a ***"), (Cache, "from the cache")]
)
def test_a_guardrail_by_llm_complete_is_never_passed_by(host: Host, guard: type, text: str) -> None:
    register_backend("first", streaming("a ", "secret"), host=host)
    host.register(guard(), "guard")
    with llm.trace(host) as trace:
        texts, answer = read(Request("hi"), host)
    assert texts == [text]
    assert answer.whole_because is not None
    assert (guard is Cache) or answer.whole_because == "a plug-in waited for all of the answer: guard"
    assert [call.hook for call in trace.hook_calls if call.hook == "llm_complete"] == ["llm_complete"]


def test_a_guardrail_that_streams_sees_what_is_streamed(host: Host) -> None:
    class Streaming:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Any:
            answer = yield
            return answer.map(lambda piece: piece.replace("secret", "***"))

    register_backend("first", streaming("a ", "secret", Completion("", model="m")), host=host)
    host.register(Streaming(), "guard")
    texts, answer = read(Request("hi"), host)
    assert texts == ["a ", "***"]
    assert answer.completion is not None
    assert (answer.completion.plugin, answer.completion.model) == ("backend:first", "m")


def test_a_guardrail_that_refuses_streams_lets_nobody_answer(host: Host) -> None:
    class Refusing:
        @hookimpl(wrapper=True)
        def llm_complete(self, request: Request) -> Any:
            if "hi" in request.prompt:
                raise PermissionError("not today")
            return (yield)

    register_backend("first", streaming("a"), host=host)
    host.register(Refusing(), "guard")
    with pytest.raises(NoAnswerError, match=r"first \[guard .*PermissionError: not today"):
        read(Request("hi", backend="first"), host)


def test_the_backend_that_is_in_use_answers_and_not_the_one_that_it_shadows(host: Host) -> None:
    class Provider:
        @hookimpl
        def llm_backends(self) -> Backend:
            return Backend("first", lambda prompt: "the right one")

    register_backend("first", streaming("shadowed"), host=host)
    host.register(Provider(), "provider")
    assert read(Request("hi"), host)[0] == ["the right one"]


def test_a_traced_stream_shows_who_streamed(host: Host) -> None:
    register_backend("first", streaming("a", "b"), host=host)
    with llm.trace(host) as trace:
        read(Request("hi"), host)
    call = next(call for call in trace.hook_calls if call.hook == "llm_complete")
    assert [one.outcome for one in call.implementations if one.origin.plugin == "backend:first"] == ["answered"]


def test_threads_read_their_own_answers(host: Host) -> None:
    class Echo(Backend):
        def run(self, prompt: str) -> str:
            return prompt

        def stream(self, prompt: str) -> Iterator[str]:
            yield from prompt

    register_backend("first", Echo, host=host)
    found: dict[str, str] = {}

    def one(prompt: str) -> Callable[[], None]:
        return lambda: found.__setitem__(prompt, "".join(read(Request(prompt), host)[0]))

    threads = [threading.Thread(target=one(f"prompt {number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(prompt == text for prompt, text in found.items())
    assert len(found) == 8


# What is done to an answer on its way


def test_pieces_may_be_split_anew_on_their_way(host: Host) -> None:
    class Lines:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Any:
            answer = yield
            return answer.pipe(self.lines)

        def lines(self, pieces: Iterator[str]) -> Iterator[str]:
            rest = ""
            for piece in pieces:
                *lines, rest = (rest + piece).split("\n")
                yield from (f"{line}\n" for line in lines)
            yield rest

    register_backend("first", streaming("a", "b\nc", "d\n", "e", Completion("", served_model="m")), host=host)
    host.register(Lines(), "lines")
    texts, answer = read(Request("hi"), host)
    assert texts == ["ab\n", "cd\n", "e"]
    assert answer.completion is not None
    assert (answer.completion.text, answer.completion.served_model) == ("ab\ncd\ne", "m")
    assert answer.completion.plugin == "backend:first"


def test_who_changes_pieces_is_blamed_for_what_it_raises(host: Host) -> None:
    class Broken:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Any:
            answer = yield
            return answer.map(lambda piece: piece if piece == "a" else str(1 // 0))

    register_backend("first", streaming("a", "b"), host=host)
    host.register(Broken(), "broken")
    answer = stream(Request("hi"), host=host, settings=CHAIN, retries=AT_ONCE)
    assert next(answer) == "a"
    with pytest.raises(CutAnswerError, match=r"first \[broken .*ZeroDivisionError"):
        list(answer)


def test_an_answer_can_be_read_again_and_ends_the_same_way() -> None:
    answer = Answer(iter(["a", "b"]))
    assert next(iter(answer)) == "a"
    assert [answer.is_whole] == [False]
    assert (list(answer), list(answer), answer.text) == (["a", "b"], ["a", "b"], "ab")
    assert answer.is_whole

    def breaks() -> Iterator[str]:
        yield "a"
        raise ValueError("broken")

    broken = Answer(breaks())
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            list(broken)
    assert broken.so_far == "a"


def test_a_strict_request_refuses_another_model_streamed_as_well_as_whole(host: Host) -> None:
    # The plug-in claims to have been asked for the model that was served.
    last = Completion("whole", model="other", served_model="other")
    first = Backend("first", lambda prompt: last, stream=lambda prompt: iter(["a", last]))

    class Provider:
        @hookimpl
        def llm_backends(self) -> Backend:
            return first

    host.register(Provider(), "provider")
    request = Request("hi", "wanted", "first", strict=True)
    with pytest.raises(NoAnswerError, match="the model 'wanted' was asked for, and 'other' answered"):
        complete(request, host=host)
    with pytest.raises(CutAnswerError, match="the model 'wanted' was asked for, and 'other' answered"):
        read(request, host)


def test_a_traced_stream_holds_the_time_in_which_it_was_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch)
    register_backend("first", streaming(*"abcdefgh"), host=host)
    with llm.trace(host) as trace:
        read(Request("hi"), host)
    call = next(call for call in trace.hook_calls if call.hook == "llm_complete")
    (answered,) = [one for one in call.implementations if one.outcome == "answered"]
    assert answered.origin.plugin == "backend:first"
    assert call.streamed >= 7_000  # each of the further pieces, and the end
    assert answered.elapsed >= call.streamed


# --- what a wrapper leaves out --------------------------------------------------------------------------------------


class Changing:
    """A wrapper that makes an answer of its own of the one inside."""

    def __init__(self, change: Callable[[Answer], Any]) -> None:
        self.change = change

    @hookimpl(wrapper=True)
    def llm_complete(self) -> Any:
        return self.change((yield))


CHANGES: dict[str, Callable[[Answer], Any]] = {
    "a text": lambda answer: answer.text.upper(),
    "a completion": lambda answer: Completion(answer.text.upper()),
    "a false served model": lambda answer: Completion(answer.text.upper(), served_model="wanted"),
    "a false model": lambda answer: Completion(answer.text.upper(), model="wanted"),
    "pieces": lambda answer: (piece.upper() for piece in answer),
    "an answer": lambda answer: Answer(piece.upper() for piece in answer),
    "a pipe": lambda answer: answer.map(str.upper),
    "two": lambda answer: Answer(answer.text.upper()).map(str),
}


@pytest.mark.parametrize("change", [one for one in CHANGES if one != "a false served model"])
@pytest.mark.parametrize("streams", [False, True])
def test_what_was_paid_for_counts_whatever_a_wrapper_makes_of_the_answer(
    host: Host, change: str, streams: bool
) -> None:
    facts = Completion("", "x", "m", served_model="m-1", usage=Usage(3, 4, 0.5), finish_reason="length")
    pieces = lambda prompt: iter(["a", "b", facts])  # noqa: E731
    register_backend("first", Backend("first", pieces, stream=pieces), host=host)
    register_backend("second", lambda prompt: replace(facts, text="ab"), host=host)
    host.register(Changing(CHANGES[change]), "changing")
    for backend in ("first", "second"):
        request = Request("hi", backend=backend)
        if streams:
            _, answer = read(request, host)
            completion = answer.completion
        else:
            completion = complete(request, host=host, settings=CHAIN)
        assert completion is not None
        assert (completion.text, completion.served_model, completion.finish_reason) == ("AB", "m-1", "length")
        assert [one.usage for one in completion.attempts] == [completion.usage] == [Usage(3, 4, 0.5)]


def test_a_backend_without_a_usage_of_its_own_costs_as_much_behind_a_wrapper(host: Host) -> None:
    register_backend("first", lambda prompt: "an answer of some words", host=host)
    plain = complete(Request("hi"), host=host, settings=CHAIN)
    host.register(Changing(lambda answer: answer.text.upper()), "changing")
    assert complete(Request("hi"), host=host, settings=CHAIN).usage == plain.usage != None  # noqa: E711


def test_an_answer_without_a_backend_costs_nothing(host: Host) -> None:
    class Cache:
        @hookimpl(tryfirst=True)
        def llm_complete(self) -> str:
            return "from the cache"

    register_backend("first", lambda prompt: "an answer", host=host)
    host.register(Cache(), "cache")
    host.register(Changing(lambda answer: answer.text.upper()), "changing")
    assert complete(Request("hi"), host=host, settings=CHAIN).usage is None


def test_a_backend_that_answers_again_is_well_also_behind_a_wrapper(host: Host) -> None:
    heard: list[str | None] = []

    class Breaker:
        def is_open(self, backend: str) -> str | None:
            return None

        def record(self, attempt: Any) -> None:
            heard.append(attempt.error)

    health_of(host).breaker = Breaker()
    register_backend("first", lambda prompt: "an answer", host=host)
    host.register(Changing(lambda answer: answer.text.upper()), "changing")
    complete(Request("hi"), host=host, settings=CHAIN)
    assert heard == [None]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("asked", ["by the request", "by the configuration"])
def test_a_strict_request_refuses_another_model_whatever_a_plug_in_makes_of_the_answer(
    host: Host, change: str, streams: bool, asked: str
) -> None:
    facts = Completion("", model="other", served_model="other")
    pieces = lambda prompt: iter(["a", "b", facts])  # noqa: E731
    register_backend("first", Backend("first", pieces, stream=pieces), host=host)
    register_backend("second", lambda prompt: replace(facts, text="ab"), host=host)
    host.register(Changing(CHANGES[change]), "changing")
    for backend in ("first", "second"):
        by_request = asked == "by the request"
        request = Request("hi", "wanted" if by_request else None, backend, strict=True)
        model = None if by_request else "wanted"
        settings = Settings(primary_backend=backend, primary_model=model)
        why = "'wanted' was asked for, and 'other' answered"
        with pytest.raises((NoAnswerError, CutAnswerError), match=why):  # noqa: PT012
            if streams:
                read(request, host, settings)
            else:
                complete(request, host=host, settings=settings)


class Pieces(Backend):
    def stream(self, prompt: str, model: str | None = None) -> Iterator[str | Completion]:
        yield from (f"{letter}." for letter in prompt)
        yield Completion("", model=model, served_model="pieces-1", usage=Usage(1, 2))


@pytest.mark.parametrize("backend", [Pieces("pieces"), Backend("pieces", stream=Pieces().stream)])
@pytest.mark.parametrize("registered", [True, False])
def test_a_backend_with_a_stream_alone_answers_whole_as_well(backend: Backend, registered: bool) -> None:
    host = host_with()
    if registered:
        register_backend("pieces", backend, host=host)
    else:
        host.register(type("Plugin", (), {"llm_backends": hookimpl(lambda self: backend)})(), "plugin")
    request = Request("ab", "m", backend="pieces")
    whole = complete(request, host=host)
    assert (whole.text, whole.model, whole.served_model, whole.usage) == ("a.b.", "m", "pieces-1", Usage(1, 2))
    answer = stream(request, host=host)
    assert list(answer) == ["a.", "b."]
    assert answer.completion is not None
    assert answer.completion.text == whole.text


@pytest.mark.parametrize("piece", ["a", ""])
def test_a_generator_without_an_end_ends_with_the_time_of_the_request(host: Host, piece: str) -> None:
    ended = []

    def endless(prompt: str) -> Iterator[str]:
        try:
            while True:
                yield piece
        finally:
            ended.append(prompt)

    register_backend("endless", endless, host=host)
    with pytest.raises(NoAnswerError, match=f"its answer did not {'end' if piece else 'begin'} within the time"):
        complete(Request("hi", backend="endless", timeout=0.1), host=host, retries=RetryPolicy(per_backend=1))
    assert ended == ["hi"]


def test_an_answer_of_a_class_of_its_own_is_taken_as_plain_text(host: Host) -> None:
    class Odd(str):
        __slots__ = ()

        def __len__(self) -> int:
            raise RuntimeError

        __str__ = __repr__ = __len__  # type: ignore[assignment]

    register_backend("whole", lambda _: Odd("text"), host=host)
    register_backend("pieces", lambda _: iter([Odd("te"), Odd("xt")]), host=host)
    for name in ("whole", "pieces"):
        text = complete(Request("hi", backend=name), host=host).text
        assert (type(text), text) == (str, "text")
