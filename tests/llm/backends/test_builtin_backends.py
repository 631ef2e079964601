"""The built-in HTTP backends: where each one sends what, and that the answer says who gave it."""

import json
from collections.abc import Iterator

import pytest
import responses

from llm.config import CONFIG_PATH_VARIABLE, ENVIRONMENT
from llm.host import Host, create_host
from llm.router import NoAnswerError, complete
from llm.routing.retries import RetryPolicy
from llm.types import Request

ADDRESSES = {
    "openrouter": "https://openrouter.ai/api/v1/chat/completions",
    "lobechat": "http://localhost:3210/api/chat/completions",
    "mindbridge": "https://api.mindbridge.ai/v1/chat/completions",
}
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "42"}}]}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ADDRESSES:
        monkeypatch.delenv(f"{name.upper()}_API_KEY", raising=False)
        monkeypatch.delenv(f"{name.upper()}_BASE_URL", raising=False)
    for name in (*ENVIRONMENT, CONFIG_PATH_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))


@pytest.fixture
def http() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def host() -> Host:
    return create_host(entries=[])


@pytest.mark.parametrize("name", ADDRESSES)
def test_each_posts_to_its_usual_address_with_its_own_key(
    name: str, host: Host, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{name.upper()}_API_KEY", f"key-of-{name}")
    http.post(ADDRESSES[name], json=ANSWER)
    completion = complete(Request("6 times 7?", model="some/model", backend=name), host=host)
    assert (completion.text, completion.backend, completion.model) == ("42", name, "some/model")
    sent = http.calls[0].request
    assert sent.headers["Authorization"] == f"Bearer key-of-{name}"
    assert json.loads(sent.body or b"") == {
        "model": "some/model",
        "messages": [{"role": "user", "content": "6 times 7?"}],
    }


@pytest.mark.parametrize("name", ADDRESSES)
def test_the_base_url_comes_from_the_environment_at_each_call(
    name: str, host: Host, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "k")
    for address in ("https://one.example/x", "http://two.example:8080/y/"):
        monkeypatch.setenv(f"{name.upper()}_BASE_URL", address)
        http.post(f"{address.rstrip('/')}/chat/completions", json=ANSWER)
        assert complete(Request("hi", backend=name), host=host).text == "42"
    assert len(http.calls) == 2


@pytest.mark.parametrize(("name", "model"), [("openrouter", "openrouter/auto"), ("lobechat", None)])
def test_the_default_model(
    name: str, model: str | None, host: Host, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "k")
    http.post(ADDRESSES[name], json=ANSWER)
    complete(Request("hi", backend=name), host=host)
    assert json.loads(http.calls[0].request.body or b"").get("model") == model


def test_openrouter_needs_a_key(host: Host, http: responses.RequestsMock) -> None:
    with pytest.raises(NoAnswerError) as caught:
        complete(Request("hi", backend="openrouter"), host=host)
    assert "OPENROUTER_API_KEY is not set" in caught.value.message
    assert caught.value.hint == "set OPENROUTER_API_KEY, or run `ai-cli keys set openrouter`"
    assert caught.value.attempts[0].error_type == "MissingKeyError"
    assert len(http.calls) == 0


@pytest.mark.parametrize("name", ["lobechat", "mindbridge"])
def test_the_others_do_without_a_key(name: str, host: Host, http: responses.RequestsMock) -> None:
    http.post(ADDRESSES[name], json=ANSWER)
    assert complete(Request("hi", backend=name), host=host).text == "42"
    assert "Authorization" not in http.calls[0].request.headers


@pytest.mark.parametrize("name", ADDRESSES)
def test_the_completion_says_which_plug_in_answered(
    name: str, host: Host, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{name.upper()}_API_KEY", "k")
    http.post(ADDRESSES[name], json=ANSWER)
    completion = complete(Request("hi", backend=name), host=host)
    assert completion.plugin == f"backend:{name}"
    assert completion.origin is not None
    assert completion.origin.builtin
    assert completion.origin.module == f"llm.backends.plugins.{name}"


def test_a_failure_names_the_plug_in_and_the_next_backend_answers(
    host: Host, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "k")
    monkeypatch.setenv("MINDBRIDGE_API_KEY", "k")
    http.post(ADDRESSES["openrouter"], status=500, json={"error": {"message": "on fire"}})
    http.post(ADDRESSES["mindbridge"], json=ANSWER)
    completion = complete(Request("hi"), host=host, retries=RetryPolicy(first_wait=0))
    assert completion.plugin == "backend:mindbridge"
    failed = completion.attempts[0]
    assert failed.origin is not None
    assert (failed.origin.plugin, failed.error_type) == ("backend:openrouter", "BackendHTTPError")
    assert failed.error == "OpenRouter answered HTTP 500 Internal Server Error: on fire"


@pytest.mark.parametrize("name", ADDRESSES)
def test_none_is_used_unasked_before_it_is_configured(name: str, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    info = host.backends()[name]
    assert not info.is_ready({})
    assert info.is_ready({f"{name.upper()}_API_KEY": "k"})
    assert info.secret_env == (f"{name.upper()}_API_KEY",)
    assert not info.local
    assert complete(Request("hi"), host=host).backend == "sample"


def test_options_reach_the_service_as_numbers(
    host: Host, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "k")
    http.post(ADDRESSES["openrouter"], json=ANSWER)
    complete(Request("hi", backend="openrouter", options={"temperature": "0.2", "seed": 7}), host=host)
    body = json.loads(http.calls[0].request.body or b"")
    assert (body["temperature"], body["seed"]) == (0.2, 7)
