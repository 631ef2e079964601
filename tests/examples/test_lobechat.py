"""The example plug-in `lobechat`: its own default model, and what it leaves to the client that it builds on."""

import sys
from collections.abc import Iterator
from importlib import import_module

import pytest

from llm import Request, complete, stream
from llm.backends.plugin_sdk import register_backend
from llm.testing import host_with
from tests.examples.conftest import EXAMPLES
from tests.servers import FaultServer, http_answer


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    monkeypatch.syspath_prepend(str(EXAMPLES / "lobechat"))
    yield import_module("d0ttino_lobechat.plugins.backend").LobeChatBackend
    for name in [name for name in sys.modules if name.startswith("d0ttino_lobechat")]:
        del sys.modules[name]


def test_the_variable_names_the_model_of_prompts_that_name_none(backend: type, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_with()
    register_backend("example", backend, host=host)
    said = http_answer({"choices": [{"message": {"role": "assistant", "content": "fine"}}]})
    with FaultServer(said) as server:
        monkeypatch.setenv("LOBECHAT_BASE_URL", server.url)
        monkeypatch.setenv("LOBECHAT_MODEL", "m-1")
        before = host.backends()["example"].identity()
        assert complete(Request("hi", backend="example"), host=host).text == "fine"
        assert list(stream(Request("hi", backend="example", model="m-2"), host=host)) == ["fine"]
        assert [one.json()["model"] for one in server.requests] == ["m-1", "m-2"]
        monkeypatch.setenv("LOBECHAT_MODEL", "m-3")
        assert host.backends()["example"].identity() != before
