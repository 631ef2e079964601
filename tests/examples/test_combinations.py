"""The example plug-ins with each other, in several orders: each holds what it promises by itself."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import combinations, permutations
from pathlib import Path
from types import ModuleType

import pytest

from llm import Backend, Completion, Request, complete, hookimpl, stream
from llm.config import RoutingMode, Settings
from llm.host import Host
from llm.router import NoAnswerError
from llm.testing import host_with
from llm.types import Attempt, Usage
from llm.usage import Ledger

NAMES = ("budget", "cache", "fallback-notify", "guard", "redact")
MAIL = "ada@example.org"
KEY = "sk-" + "a1b2c3d4" * 3
SETTINGS = Settings("broken", "echo", routing_mode=RoutingMode.REMOTE)

PAIRS = [order for pair in combinations(NAMES, 2) for order in permutations(pair)]
ALL = [NAMES, NAMES[::-1], NAMES[2:] + NAMES[:2], NAMES[3:] + NAMES[:3]]
#: The issue's own four, but for what needs an environment of its own: tests/e2e/test_example_plugins.py has that.
ISSUE = list(permutations(("cache", "redact", "budget")))


class Backends:
    """Contributes a backend that is broken, and one that answers with what it gets, letter by letter."""

    def __init__(self) -> None:
        self.got: list[str] = []

    @hookimpl
    def llm_backends(self) -> list[Backend]:
        return [Backend("broken", self.fail), Backend("echo", self.whole, stream=self.pieces)]

    def fail(self, prompt: str) -> str:
        raise RuntimeError("it is down")

    def whole(self, prompt: str) -> str:
        return "".join(self.pieces(prompt))

    def pieces(self, prompt: str) -> Iterator[str]:
        self.got.append(prompt)
        yield from f"you said: {prompt}"


def whole(request: Request, host: Host) -> Completion:
    return complete(request, host=host, settings=SETTINGS)


def streamed(request: Request, host: Host) -> Completion:
    answer = stream(request, host=host, settings=SETTINGS)
    assert "".join(answer)
    assert answer.completion is not None
    return answer.completion


@pytest.mark.parametrize("order", [*PAIRS, *ISSUE, *ALL], ids="+".join)
def test_all_hold_what_they_promise_whatever_the_order(
    order: tuple[str, ...],
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    clean_environment: Path,
) -> None:
    backends = Backends()
    host = host_with(backends)
    for name in order:
        module = example(name)
        plugin = getattr(module, name.capitalize(), None)
        host.register(module if plugin is None else plugin(), name)
    monkeypatch.setenv("D0TTINO_BUDGET_DAY", "1")
    for ask in (whole, streamed):
        prompt = f"{ask.__name__} {MAIL}"
        completion = ask(Request(prompt), host)
        assert completion.text == f"you said: {prompt}"  # redact: back in the answer
        assert completion.origin is not None
        assert (completion.origin.module, completion.fell_back) == (__name__, True)  # nobody takes the backend's credit
        told = "fallback: echo answered in place of broken" in capfd.readouterr().err
        assert told == ("fallback-notify" in order)
        assert any(MAIL in got for got in backends.got) == ("redact" not in order)  # redact: nothing leaves

        asked = len(backends.got)
        again = ask(Request(prompt, backend="echo"), host)
        assert again.text == f"you said: {prompt}"
        assert (again.plugin == "cache", len(backends.got) == asked) == ("cache" in order,) * 2
        assert again.usage is None or "cache" not in order  # a cached answer counts into no budget
    if {"cache", "redact"} <= {*order}:
        assert MAIL.encode() not in (clean_environment / ".cache/d0ttino/answers.db").read_bytes()

    if "guard" in order or "redact" in order:
        with suppress(NoAnswerError):  # the guard refuses it, unless the redaction came first
            whole(Request(f"my key is {KEY}", backend="echo"), host)
        assert not any(KEY in got for got in backends.got)

    Ledger().append([Attempt("echo", None, None, 0.1, usage=Usage(1, 1, 2.0))])
    if "budget" in order:
        with pytest.raises(NoAnswerError, match=f"the budget of {datetime.now().astimezone():%Y-%m-%d} is spent"):
            whole(Request("something new", backend="echo"), host)
        assert not any("something new" in got for got in backends.got)
        if "cache" in order:
            assert whole(Request(f"whole {MAIL}", backend="echo"), host).plugin == "cache"
    assert not list(host.problems)
