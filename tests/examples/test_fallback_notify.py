"""The example plug-in `fallback-notify`: a line on stderr if another backend answered."""

from collections.abc import Callable
from types import ModuleType

import pytest

from llm import Backend, Request, complete, hookimpl
from llm.config import RoutingMode, Settings
from llm.testing import host_with


class Two:
    @hookimpl
    def llm_backends(self) -> list[Backend]:
        return [Backend("big", self.fail), Backend("small", lambda prompt: f"small: {prompt}")]

    def fail(self, prompt: str) -> str:
        if "fail" in prompt:
            raise RuntimeError("it is\x1b[31m down")
        return "big"


def test_a_fallback_is_told_with_its_reason_and_nothing_else_is(
    example: Callable[[str], ModuleType], capfd: pytest.CaptureFixture[str]
) -> None:
    host = host_with(Two(), example("fallback-notify"))
    settings = Settings("big", "small", routing_mode=RoutingMode.REMOTE)
    assert complete(Request("hi"), host=host, settings=settings).text == "big"
    assert capfd.readouterr() == ("", "")
    assert complete(Request("fail"), host=host, settings=settings).text == "small: fail"
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("fallback: small answered in place of big: big [")
    assert "it is\\x1b[31m down" in err
    assert err.count("\n") == 1
    assert not list(host.problems)
