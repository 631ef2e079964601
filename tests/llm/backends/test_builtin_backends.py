"""The built-in HTTP backends: where each one sends what, and that the answer says who gave it."""

import base64
import hashlib
import hmac
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
import responses

from llm.config import CONFIG_PATH_VARIABLE, ENVIRONMENT
from llm.errors import AuthenticationError
from llm.host import Host, create_host
from llm.router import NoAnswerError, complete, stream
from llm.routing.fallback import RetryPolicy
from llm.types import Call, Request
from tests.servers import Exchange, FaultServer, chat_answer, http_answer

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
        **({"usage": {"include": True}} if name == "openrouter" else {}),
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
    access_code = ("LOBECHAT_ACCESS_CODE",) if name == "lobechat" else ()
    assert info.secret_env == (f"{name.upper()}_API_KEY", *access_code)
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


# OpenRouter


def openrouter(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_BASE_URL", f"{server.url}/api/v1")
    monkeypatch.setenv("OPENROUTER_API_KEY", "k")


def test_openrouter_hears_who_asks_and_is_asked_for_the_cost(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(chat_answer("42")) as server:
        openrouter(server, monkeypatch)
        options = {"models": "one/a, two/b"}
        complete(Request("hi", backend="openrouter", model="openrouter/auto", options=options), host=host)
    (sent,) = server.requests
    assert (sent.headers["x-title"], "d0ttino" in sent.headers["http-referer"]) == ("d0ttino", True)
    assert sent.json()["model"] == "openrouter/auto"
    assert sent.json()["models"] == ["one/a", "two/b"]
    assert sent.json()["usage"] == {"include": True}


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"cost": 0.5}, 0.5),
        ({"cost": 0.5, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.5}}, 0.5),
        ({"cost": 0.25, "is_byok": True, "cost_details": {"upstream_inference_cost": 4}}, 4.25),
        ({"cost": 0.25, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, 0.25),
        ({"cost": 0.25, "is_byok": True, "cost_details": "nothing"}, 0.25),
        ({"cost": -1, "is_byok": True, "cost_details": {"upstream_inference_cost": 4}}, None),
    ],
)
def test_the_cost_of_a_key_of_ones_own_has_two_parts(
    usage: dict[str, object], cost: float | None, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = {"prompt_tokens": 3, "completion_tokens": 4}
    answer = {"choices": [{"message": {"content": "42"}}], "usage": {**tokens, **usage}}
    with FaultServer(http_answer(answer)) as server:
        openrouter(server, monkeypatch)
        completion = complete(Request("hi", backend="openrouter"), host=host)
    assert completion.usage is not None
    assert completion.usage.cost == cost


def test_openrouter_is_asked_about_the_key_itself(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(http_answer({"data": {}}), http_answer(status=401)) as server:
        openrouter(server, monkeypatch)
        check = host.loaded(host.backends()["openrouter"]).check
        assert check is not None
        assert check(Call()) is None
        with pytest.raises(AuthenticationError, match="refused the API key"):
            check(Call())
    assert {one.target for one in server.requests} == {"/api/v1/key"}


# LobeChat

TEXT = http_answer(
    'id: 1\nevent: text\ndata: "4"\n\nid: 1\nevent: text\ndata: "2"\n\nid: 1\nevent: stop\ndata: "stop"\n\n',
    headers={"Content-Type": "text/event-stream"},
)
LOGIN = http_answer({"errorType": "InvalidAccessCode", "body": {"provider": "openai"}}, status=401)


class LobeChat:
    """A server that has some of LobeChat's routes, and wants an access code."""

    def __init__(self, route: str, mixed: bool = True) -> None:
        self.route = route
        self.mixed = mixed
        self.server = FaultServer(self.reply)

    def reply(self, exchange: Exchange) -> None:
        asked = exchange.received
        known = asked.target == self.route
        exchange.connection.sendall(
            (TEXT if self.login(asked.headers).get("accessCode") == "open" else LOGIN)
            if known
            else http_answer("<!DOCTYPE html><html>", status=404)
        )

    def login(self, headers: Mapping[str, str]) -> dict[str, str]:
        text = headers.get("x-lobe-chat-auth", "")
        try:
            if self.mixed:
                pairs = zip(base64.b64decode(text, validate=True), itertools.cycle("LobeHub · LobeHub".encode()))
                found = json.loads(bytes(one ^ other for one, other in pairs))
            else:
                head, claims, signature = text.split(".")
                key = hashlib.sha256("LobeHub · LobeChat".encode()).digest()
                wanted = hmac.digest(key, f"{head}.{claims}".encode(), "sha256")
                assert base64.urlsafe_b64decode(signature + "==") == wanted
                found = json.loads(base64.urlsafe_b64decode(claims + "=="))
        except ValueError:
            return {}
        assert isinstance(found, dict)
        return found


@pytest.mark.parametrize(
    ("route", "mixed"), [("/api/chat/openai", False), ("/webapi/chat/openai", True), ("/webapi/chat/openai", False)]
)
@pytest.mark.parametrize("streamed", [False, True])
def test_lobechats_own_routes_are_found_by_its_answers(
    route: str, mixed: bool, streamed: bool, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    lobechat = LobeChat(route, mixed)
    monkeypatch.setenv("LOBECHAT_ACCESS_CODE", "open")
    monkeypatch.setenv("LOBECHAT_API_KEY", "k")
    with lobechat.server as server:
        monkeypatch.setenv("LOBECHAT_BASE_URL", f"{server.url}/api")
        request = Request("6 times 7?", model="m", backend="lobechat")
        for _ in range(2):
            text = "".join(stream(request, host=host)) if streamed else complete(request, host=host).text
            assert text == "42"
    assert server.requests[0].target == "/api/chat/completions"
    last, before = server.requests[-1], server.requests[-2]
    assert (last.target, before.target) == (route, route)  # the second prompt goes there at once
    assert last.json()["messages"] == [{"role": "user", "content": "6 times 7?"}]
    assert lobechat.login(last.headers)["apiKey"] == "k"


def test_lobechat_with_an_access_code_says_which_variable_to_set(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with LobeChat("/webapi/chat/openai").server as server:
        monkeypatch.setenv("LOBECHAT_BASE_URL", f"{server.url}/api")
        with pytest.raises(NoAnswerError) as caught:
            complete(Request("hi", backend="lobechat"), host=host)
    assert "`ai-cli keys set LOBECHAT_ACCESS_CODE`" in str(caught.value.hint)
    assert "API_KEY" not in str(caught.value.hint)


def test_the_access_code_of_lobechat_may_be_in_the_store_of_keys(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "scripts.ai_cli", "keys", "set", "LOBECHAT_ACCESS_CODE"]
    done = subprocess.run(command, input="open", text=True, capture_output=True)
    assert done.returncode == 0
    with LobeChat("/webapi/chat/openai").server as server:
        monkeypatch.setenv("LOBECHAT_BASE_URL", f"{server.url}/api")
        assert complete(Request("6 times 7?", backend="lobechat"), host=host).text == "42"
    listed = subprocess.run([*command[:-2], "list", "--json"], text=True, capture_output=True).stdout
    (row,) = [row for row in json.loads(listed) if row["from"]]
    assert (row["variable"], row["backends"], row["from"]) == ("LOBECHAT_ACCESS_CODE", ["lobechat"], "file")


def test_a_server_that_has_none_of_the_routes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with LobeChat("/elsewhere").server as server:
        monkeypatch.setenv("LOBECHAT_BASE_URL", f"{server.url}/api")
        with pytest.raises(NoAnswerError) as caught:
            complete(Request("hi", backend="lobechat"), host=host)
    assert "has no OpenAI-compatible interface at this address" in str(caught.value.hint)


def test_each_route_is_an_exchange_of_its_own(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(http_answer(b"", 404), b"") as server:  # the second one is hung up on
        monkeypatch.setenv("LOBECHAT_BASE_URL", f"{server.url}/api")
        with pytest.raises(NoAnswerError, match=r"no answer from LobeChat at .*: the server closed the connection"):
            complete(Request("hi", backend="lobechat", max_attempts=1), host=host)
