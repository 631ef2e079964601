"""Requests in asyncio programs: side by side, as they come, and cancelled with their task."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

import llm
from llm import Backend, Call, Host, Request, acomplete, astream, hookimpl
from llm.errors import BackendError, CancelledError, D0ttinoError, UnknownNameError
from llm.router import CutAnswerError, NoAnswerError
from llm.testing import host_with


class Observer:
    def __init__(self) -> None:
        self.errors: list[D0ttinoError | None] = []
        self.ended = threading.Event()

    @hookimpl
    def llm_completed(self, error: D0ttinoError | None) -> None:
        self.errors.append(error)
        self.ended.set()


@pytest.fixture
def observer() -> Observer:
    return Observer()


def host_of(*plugins: object, **backends: Backend) -> Host:
    class Backends:
        @hookimpl
        def llm_backends(self) -> list[Backend]:
            return list(backends.values())

    return host_with(Backends(), *plugins)


def test_many_requests_wait_side_by_side() -> None:
    together = threading.Barrier(50)  # more than the pool of asyncio has threads

    def run(prompt: str) -> str:
        together.wait(60)
        return prompt.upper()

    host = host_of(a=Backend("a", run))

    async def main() -> list[str]:
        requests = [acomplete(Request(f"no {number}", backend="a"), host=host) for number in range(50)]
        return [completion.text for completion in await asyncio.gather(*requests)]

    assert asyncio.run(main()) == [f"NO {number}" for number in range(50)]


def test_a_backend_may_run_a_loop_of_its_own() -> None:
    async def answer(prompt: str) -> str:
        await asyncio.sleep(0)
        return prompt.upper()

    host = host_of(a=Backend("a", lambda prompt: asyncio.run(answer(prompt))))
    assert asyncio.run(acomplete(Request("hi", backend="a"), host=host)).text == "HI"


def test_errors_are_those_of_complete_and_stream() -> None:
    def run(prompt: str) -> str:
        raise BackendError("busy")

    def stream(prompt: str) -> Iterator[str]:
        yield "half "
        raise BackendError("broken")

    host = host_of(a=Backend("a", run), b=Backend("b", stream=stream))

    async def main() -> None:
        with pytest.raises(NoAnswerError, match="busy"):
            await acomplete(Request("hi", backend="a"), host=host)
        with pytest.raises(UnknownNameError):
            await anext(astream(Request("hi", backend="nobody"), host=host))
        answer = astream(Request("hi", backend="b"), host=host)
        assert await anext(answer) == "half "
        with pytest.raises(CutAnswerError, match="broken"):
            await anext(answer)
        assert answer.completion is not None
        assert (answer.completion.text, answer.completion.cut) == ("half ", True)

    asyncio.run(main())


def test_texts_come_as_the_backend_yields_them() -> None:
    read = threading.Event()

    def stream(prompt: str) -> Iterator[str]:
        yield "one "
        assert read.wait(60)
        yield "two"

    host = host_of(a=Backend("a", stream=stream))

    async def main() -> None:
        answer = astream(Request("hi", backend="a"), host=host)
        assert (await anext(answer), answer.completion) == ("one ", None)
        read.set()
        assert [text async for text in answer] == ["two"]
        assert answer.completion is not None
        assert (answer.completion.text, answer.completion.backend) == ("one two", "a")

    asyncio.run(main())


class Waiting:
    """A backend that waits until its call is cancelled."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def run(self, prompt: str, call: Call) -> str:
        over = threading.Event()
        with call.on_cancel(over.set):
            self.asked.set()
            assert over.wait(60)
        raise InterruptedError

    def stream(self, prompt: str, call: Call) -> Iterator[str]:
        yield "one"
        yield self.run(prompt, call)


@pytest.mark.parametrize("streaming", [False, True])
def test_cancelling_the_task_cancels_the_request(streaming: bool, observer: Observer) -> None:
    waiting = Waiting()
    host = host_of(observer, a=Backend("a", waiting.run, stream=waiting.stream))

    async def ask() -> None:
        request = Request("hi", backend="a")
        if streaming:
            async for _ in astream(request, host=host):
                pass
        else:
            await acomplete(request, host=host)

    async def main() -> None:
        task = asyncio.create_task(ask())
        await asyncio.to_thread(waiting.asked.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert observer.ended.wait(60)
    (error,) = observer.errors
    assert isinstance(error, CancelledError)
    assert error.message == "its task was cancelled"


def test_a_cancellation_ends_it_as_well() -> None:
    waiting = Waiting()
    host = host_of(a=Backend("a", waiting.run, stream=waiting.stream))

    async def main() -> None:
        cancellation = llm.Cancellation()
        texts = astream(Request("hi", backend="a"), host=host, cancellation=cancellation)
        assert await anext(texts) == "one"
        cancellation.cancel("enough")
        with pytest.raises(CancelledError, match="enough"):
            await anext(texts)

    asyncio.run(main())


def test_a_stream_that_is_left_is_closed(observer: Observer) -> None:
    waiting = Waiting()
    host = host_of(observer, a=Backend("a", waiting.run, stream=waiting.stream))

    async def main() -> None:
        async for text in astream(Request("hi", backend="a"), host=host):
            assert text == "one"
            break

    asyncio.run(main())
    assert observer.ended.wait(60)
    assert isinstance(observer.errors[0], CancelledError)


def test_a_trace_of_the_task_has_its_requests() -> None:
    host = host_of(a=Backend("a", str.upper))

    async def main() -> list[str]:
        with llm.trace(host) as trace:
            await acomplete(Request("hi", backend="a"), host=host)
        return [call.hook for call in trace.hook_calls]

    assert "llm_complete" in asyncio.run(main())
