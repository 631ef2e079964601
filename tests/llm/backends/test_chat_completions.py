"""The HTTP client: what it sends, and what it says about every way in which an answer can fail."""

import gzip
import json
import socket
import threading
import traceback
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
import responses
from hypothesis import given
from hypothesis import strategies as st

from llm import Parameter, Request, complete
from llm.backends.http import ChatCompletionsBackend, _KeyAuth, _option_value
from llm.backends.http._errors import MAX_QUOTE, Endpoint
from llm.backends.http.answers import AnswerReader
from llm.backends.http.openai import chat_text
from llm.backends.plugin_sdk import register_backend
from llm.errors import (
    AuthenticationError,
    BackendConnectionError,
    BackendError,
    BackendHTTPError,
    BackendTimeoutError,
    ConfigError,
    D0ttinoError,
    MalformedResponseError,
    MissingKeyError,
    UsageError,
)
from llm.testing import host_with
from tests.servers import Exchange, FaultServer, Reply, chat_answer, free_port, http_answer

KEY = "sk-planted/0123456789 abcdef"
BASE = "https://api.example/v1"
URL = f"{BASE}/chat/completions"
ANSWER = {"choices": [{"message": {"role": "assistant", "content": "42"}}]}


class Service(ChatCompletionsBackend):
    label = "Service"
    base_url_env = "SERVICE_BASE_URL"
    default_base_url = BASE
    api_key_env = "SERVICE_API_KEY"
    secret_env: ClassVar[tuple[str, ...]] = ("SERVICE_API_KEY",)
    read_timeout = 5.0


class Hasty(Service):
    connect_timeout = 0.3
    read_timeout = 0.3


class Limited(Service):
    total_timeout = 0.6


class NeedsKey(Service):
    api_key_required = True


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("SERVICE_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    monkeypatch.setenv("SERVICE_API_KEY", KEY)


@pytest.fixture
def http() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def backend() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    @contextmanager
    def serving(*replies: Reply) -> Iterator[FaultServer]:
        with FaultServer(*replies) as server:
            monkeypatch.setenv("SERVICE_BASE_URL", f"{server.url}/v1")
            yield server

    return serving


def failure(backend: ChatCompletionsBackend, *arguments: Any, **named: Any) -> D0ttinoError:
    """Run a backend that must fail, check that nothing shows the key, and return the error."""
    with pytest.raises(D0ttinoError) as caught:
        backend.run(*(arguments or ("hi",)), **named)
    error = caught.value
    assert_no_secret(error)
    assert "\n" not in error.message
    assert "object at 0x" not in f"{error.message} {error.hint}"
    return error


def assert_no_secret(error: BaseException, *secrets: str) -> None:
    inner: list[BaseException | None] = [error]
    while inner:
        each = inner.pop()
        if each is None:
            continue
        shown = [str(each), repr(each), repr(vars(each)), "".join(traceback.format_exception(each))]
        for secret in (KEY, KEY.replace(" ", "%20"), "sk-planted", *secrets):
            assert not any(secret in text for text in shown)
        inner += [each.__cause__, each.__context__]


# What is sent


def test_the_body_holds_prompt_model_and_options(backend: Service, http: responses.RequestsMock) -> None:
    http.post(URL, json=ANSWER)
    assert backend.run("é\ud83d?", "m", {"max_tokens": "7"}) == "42"
    request = http.calls[0].request
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"].startswith("d0ttino/")
    assert json.loads(request.body or b"") == {
        "model": "m",
        "messages": [{"role": "user", "content": "é\ud83d?"}],
        "max_tokens": 7,
    }


@pytest.mark.parametrize("key", ["", "  "])
def test_without_a_key_no_authorization_is_sent(
    key: str, backend: Service, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", key)
    http.post(URL, json=ANSWER)
    backend.run("hi")
    assert "Authorization" not in http.calls[0].request.headers


def test_white_space_around_the_key_is_left_out(
    backend: Service, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", " abc\r\n")
    http.post(URL, json=ANSWER)
    backend.run("hi")
    assert http.calls[0].request.headers["Authorization"] == "Bearer abc"


@pytest.mark.parametrize("key", [None, KEY])
def test_netrc_is_not_used(
    key: str | None, backend: Service, serve: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    if key is None:
        monkeypatch.delenv("SERVICE_API_KEY")
    with serve(chat_answer("42")) as server:
        assert requests.utils.get_netrc_auth(server.url) == ("somebody", "hunter2")
        backend.run("hi")
    assert server.requests[0].headers.get("authorization") == (key and f"Bearer {key}")


def test_a_subclass_adds_headers(http: responses.RequestsMock) -> None:
    class Titled(Service):
        def headers(self) -> Mapping[str, str]:
            return {"X-Title": "d0ttino", "user-agent": "mine", "Authorization": "never"}

    http.post(URL, json=ANSWER)
    Titled().run("hi")
    sent = http.calls[0].request.headers
    assert (sent["X-Title"], sent["User-Agent"], sent["Authorization"]) == ("d0ttino", "mine", f"Bearer {KEY}")


@pytest.mark.parametrize("value", ["bad\r\nvalue", "ключ", " leading", 7])
def test_a_header_that_cannot_be_sent(value: Any, serve: Any) -> None:
    class Broken(Service):
        def headers(self) -> Mapping[str, str]:
            return {"X-Broken": value}

    with serve(chat_answer("42")) as server:
        error = failure(Broken())
    assert "a header for Service" in error.message
    assert str(value) not in error.message
    assert server.requests == []


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("0.2", 0.2),
        ("-3", -3),
        ("true", True),
        ("null", None),
        ("True", "True"),
        ("word", "word"),
        ("", ""),
        ('"7"', "7"),
        ('["a", "b"]', ["a", "b"]),
        ('{"type": "json_object"}', {"type": "json_object"}),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("[" * 100_000, "[" * 100_000),
        (0.5, 0.5),
        (["x"], ["x"]),
    ],
)
def test_option_values(text: Any, sent: Any) -> None:
    assert _option_value(text) == sent


def test_an_option_that_it_declares_is_sent_as_the_type_that_it_declares(http: responses.RequestsMock) -> None:
    http.post(URL, json=ANSWER)
    host = host_with()
    # `tag` is text that looks like a number, and `top_a_k` like an option that the service knows.
    declared = (Parameter("tag"), Parameter("top_a_k", int), Parameter("seed", int, default=3))
    register_backend("service", Service("service", options=declared), host=host)
    options = {"tag": "123", "top_a_k": "5"}
    completion = complete(Request("hi", backend="service", options=options), host=host)
    sent = json.loads(http.calls[0].request.body or b"")
    assert (sent["tag"], sent["top_a_k"], sent["seed"], completion.notices) == ("123", 5, 3, ())


@pytest.mark.parametrize("name", ["messages", "model", "stream"])
def test_options_that_are_not_options(name: str, backend: Service) -> None:
    error = failure(backend, "hi", options={name: "x"})
    assert isinstance(error, UsageError)
    assert error.message.startswith(f"the option {name!r} cannot be set: ")


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_options_that_json_cannot_hold(value: Any, backend: Service) -> None:
    assert isinstance(failure(backend, "hi", options={"x": value}), UsageError)


# The environment


def test_a_missing_key(http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", " ")
    error = failure(NeedsKey())
    assert isinstance(error, MissingKeyError)
    assert str(error) == "Service needs an API key, and SERVICE_API_KEY is not set"
    assert error.hint == "set SERVICE_API_KEY, or run `ai-cli keys set service`"


@pytest.mark.parametrize("key", ["sk-planted\r\nX-Evil: 1", "sk-planted\x7f", "sk-planted“", "sk-planted\udcff"])
def test_a_key_that_no_header_can_hold(key: str, backend: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", key)
    error = failure(backend)
    assert isinstance(error, ConfigError)
    assert "SERVICE_API_KEY" in error.message


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sk-planted", "is not an http or https address"),
        ("localhost:3210/api", "is not an http or https address"),
        ("ftp://example/sk-planted", "is not an http or https address"),
        ("https:///v1", "is not an http or https address"),
        ("https://[::1/v1", "is not an http or https address"),
        ("https://example:99999/", "is not an http or https address"),
        ("https://example:0/", "is not an http or https address"),
        ("https://exa mple/", "is not an http or https address"),
        ("https://exa\nmple/", "is not an http or https address"),
        ("https://good.example\\@evil.example/", "is not an http or https address"),
        ("https://me:sk-planted@example/v1", "must not hold a user name or password"),
        ("https://sk-planted@example/v1", "must not hold a user name or password"),
        ("https://example/v1?key=sk-planted", "must end with its path, without '?' or '#'"),
        ("https://example/v1#sk-planted", "must end with its path, without '?' or '#'"),
        ("https://example?", "must end with its path, without '?' or '#'"),
        ("https://example/v1?api-version=1&code=planted", "must end with its path, without '?' or '#'"),
        ("https://example/v1?sig=planted", "must end with its path, without '?' or '#'"),
        ("https://example/v1?v=sk-planted", "must end with its path, without '?' or '#'"),
    ],
)
def test_a_base_url_that_cannot_be_used(
    url: str, words: str, backend: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_BASE_URL", url)
    error = failure(backend)
    assert isinstance(error, ConfigError)
    assert str(error) == f"SERVICE_BASE_URL {words}"


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".example", "*.example"])
def test_a_host_that_cannot_be(host: str, backend: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_BASE_URL", f"http://{host}/v1")
    error = failure(backend)
    assert isinstance(error, ConfigError | BackendConnectionError)
    assert host in error.message
    assert error.hint == "check SERVICE_BASE_URL"


@pytest.mark.parametrize("url", [f"{BASE}/", f"{BASE}///", f"  {BASE}\n", "", "HTTPS://api.example/v1"])
def test_base_urls_that_mean_the_same(
    url: str, backend: Service, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_BASE_URL", url)
    http.post(URL, json=ANSWER)
    assert backend.run("hi") == "42"


def test_a_proxy_from_the_environment_is_used(backend: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(chat_answer("42")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("SERVICE_BASE_URL", "http://far.example/v1")
        assert backend.run("hi") == "42"
    assert proxy.requests[0].target == "http://far.example/v1/chat/completions"


def test_a_proxy_that_refuses(backend: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(http_answer(status=407)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("://", "://me:hunter2@"))
        error = failure(backend)
    assert_no_secret(error, "hunter2")
    assert isinstance(error, BackendConnectionError)
    assert str(error) == (
        "cannot reach Service at api.example through the proxy: "
        "Tunnel connection failed: 407 Proxy Authentication Required"
    )
    assert error.hint == "it wants a user name and a password; check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
    assert not error.transient


def test_a_proxy_that_cannot_make_a_way_may_make_one_later(backend: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(http_answer(status=502)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        error = failure(backend)
    assert isinstance(error, BackendConnectionError)
    assert error.transient


@pytest.mark.parametrize("reply", [b"", b"\0\1\n", b"HTTP/1.1 " + b"x" * 70_000])
def test_a_proxy_that_answers_nonsense_is_named(
    backend: Service, reply: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer(reply) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("SERVICE_BASE_URL", "https://api.example")
        error = failure(backend)
    assert error.message.startswith("cannot reach Service at api.example through the proxy: ")
    assert "HTTPS_PROXY" in (error.hint or "")


def test_this_machine_is_asked_without_a_proxy(backend: Service, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Go: a prompt for this machine does not leave it, and no proxy could reach the server."""
    with FaultServer(chat_answer("the proxy's")) as proxy, serve(chat_answer("42")):
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("all_proxy", proxy.url)
        assert backend.run("hi") == "42"
    assert proxy.requests == []


@pytest.mark.parametrize("proxy", ["http://", "gopher://me:hunter2@127.0.0.1:1"])
def test_a_proxy_that_cannot_be(proxy: str, backend: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    error = failure(backend)
    assert_no_secret(error, "hunter2")
    assert isinstance(error, ConfigError | BackendConnectionError)
    assert "proxy" in error.message


# Statuses that are no success


@pytest.mark.parametrize(
    ("status", "kind", "message", "hint"),
    [
        (401, AuthenticationError, "Service refused the API key (HTTP 401 Unauthorized): no", "check SERVICE_API_KEY"),
        (403, AuthenticationError, "Service refused the request (HTTP 403 Forbidden): no", "check SERVICE_API_KEY"),
        (
            404,
            BackendHTTPError,
            "Service answered HTTP 404 Not Found: no",
            "check SERVICE_BASE_URL and the model's name",
        ),
        (400, BackendHTTPError, "Service answered HTTP 400 Bad Request: no", None),
        (500, BackendHTTPError, "Service answered HTTP 500 Internal Server Error: no", None),
        (599, BackendHTTPError, "Service answered HTTP 599: no", None),
    ],
)
def test_statuses(
    status: int,
    kind: type[BackendError],
    message: str,
    hint: str | None,
    backend: Service,
    http: responses.RequestsMock,
) -> None:
    http.post(URL, status=status, json={"error": {"message": "no"}})
    error = failure(backend)
    assert (type(error), str(error), error.hint) == (kind, message, hint)
    if isinstance(error, BackendHTTPError):
        assert error.status == status


def test_a_401_without_a_key_asks_for_one(
    backend: Service, http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERVICE_API_KEY")
    http.post(URL, status=401)
    error = failure(backend)
    assert isinstance(error, AuthenticationError)
    assert (str(error), error.hint) == (
        "Service refused a request without API key (HTTP 401 Unauthorized)",
        "set SERVICE_API_KEY",
    )


def test_a_429_says_when_to_come_back(backend: Service, http: responses.RequestsMock) -> None:
    http.post(URL, status=429, json={"error": {"message": "slow down"}}, headers={"Retry-After": "20"})
    error = failure(backend)
    assert str(error) == "Service answered HTTP 429 Too Many Requests: slow down"
    assert error.hint == "Service asks to wait before the next try (Retry-After: 20)"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "a\\n b"}}', "a b"),
        (b'{"error": "plain"}', "plain"),
        (b'{"message": "top"}', "top"),
        (b'{"detail": "not there"}', "not there"),
        (b'[{"error": {"message": "in a list"}}]', "in a list"),
        (b'{"error": {"code": 5}}', '{"error": {"code": 5}}'),
        (b'{"errorType": "InvalidAccessCode"}', '{"errorType": "InvalidAccessCode"}'),
        (b"just words", "just words"),
        (b"<!DOCTYPE html><html><title>\n502 &amp; gone</title>much more", "502 & gone"),
        (b"<html>no title", "<html>no title"),
        (b"\xff\xfe", "\N{REPLACEMENT CHARACTER}" * 2),
        (b"\x1b[31mred\x07", "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"),
        (
            json.dumps(
                {
                    "error": {
                        "message": "Provider returned error",
                        "metadata": {"provider_name": "Acme", "raw": '{"error": {"message": "overloaded"}}'},
                    }
                }
            ).encode(),
            "Provider returned error: Acme: overloaded",
        ),
        (b'{"error": {"message": "m", "metadata": {"raw": "in words"}}}', "m: in words"),
        (b'{"error": {"message": "m", "metadata": {"raw": {"odd": 1}}}}', "m"),
        (b'{"error": {"message": "m", "metadata": {"raw": "[[1]]"}}}', "m: [[1]]"),
        (b"[" * 60_000, "[" * (MAX_QUOTE - 3) + "..."),
    ],
)
def test_the_servers_own_words(body: bytes, words: str, backend: Service, http: responses.RequestsMock) -> None:
    http.post(URL, status=500, body=body)
    assert str(failure(backend)) == f"Service answered HTTP 500 Internal Server Error: {words}"


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        json.dumps(KEY),
        KEY.replace("/", "\\/"),
        KEY.replace("/", "%2F").replace(" ", "%20"),
        "x" * (MAX_QUOTE - 8) + KEY,
        KEY.replace(" ", "\n  "),
    ],
)
@pytest.mark.parametrize("status", [200, 302, 401, 429, 500])
def test_a_key_that_the_server_echoes_is_not_shown(
    status: int, echo: str, backend: Service, http: responses.RequestsMock
) -> None:
    headers = {"Location": f"https://{KEY}.example/{KEY}", "Retry-After": KEY}
    http.post(URL, status=status, body=f"bad key: {echo}", headers=headers)
    failure(backend)


@pytest.mark.parametrize("status", [200, 302, 401, 500])
def test_no_local_variable_shows_the_key(status: int, backend: Service, http: responses.RequestsMock) -> None:
    """Some programs print them with a traceback."""
    http.post(URL, status=status, body="no")
    error = failure(backend)
    captured = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert "sk-planted" not in "".join(captured.format())


def test_other_secrets_are_not_shown_either(http: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoSecrets(Service):
        secret_env: ClassVar[tuple[str, ...]] = ("SERVICE_API_KEY", "SERVICE_TENANT_SECRET", "SERVICE_ODD_SECRET")

    monkeypatch.setenv("SERVICE_TENANT_SECRET", "tenant-secret")
    monkeypatch.setenv("SERVICE_ODD_SECRET", "\udcff")
    http.post(URL, status=500, body="tenant-secret?")
    error = failure(TwoSecrets())
    assert str(error) == "Service answered HTTP 500 Internal Server Error: ***?"


def test_an_error_of_which_only_the_start_comes(backend: Service, serve: Any) -> None:
    broken = http_answer(b"the database is ", 503, {"Content-Length": "1000"})
    with serve(broken):
        error = failure(backend)
    assert str(error).startswith("Service answered HTTP 503 Service Unavailable")


def test_no_retries(backend: Service, serve: Any) -> None:
    with serve(http_answer(b"", 503, {"Retry-After": "0"})) as server:
        failure(backend)
    assert len(server.requests) == 1


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, backend: Service, serve: Any) -> None:
    with FaultServer(chat_answer("stolen")) as other:
        location = f"http://me:hunter2@{other.host}/v1?token=hunter2"
        with serve(http_answer(b"", status, {"Location": location})):
            error = failure(backend)
        assert other.requests == []
        assert other.connections == 0
    assert isinstance(error, BackendHTTPError)
    assert error.status == status
    assert f"a redirect to {other.host};" in error.message
    assert error.hint == "check SERVICE_BASE_URL"
    assert_no_secret(error, "hunter2")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("/elsewhere", "a redirect to api.example;"),
        ("//other.example", "a redirect to other.example;"),
        ("http://[", "a redirect to an address that cannot be read;"),
        ("https://é.example", "a redirect to "),
        (None, "a redirect to nowhere;"),
    ],
)
def test_odd_redirects(location: str | None, words: str, backend: Service, http: responses.RequestsMock) -> None:
    http.post(URL, status=302, headers={"Location": location} if location else {})
    error = failure(backend)
    assert isinstance(error, BackendHTTPError)
    assert words in error.message


def test_the_body_of_a_redirect_is_not_read(backend: Service, serve: Any) -> None:
    def endless(exchange: Exchange) -> None:
        exchange.connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://other.example/\r\n\r\n")
        exchange.stopping.wait(60)

    with serve(endless):
        assert "other.example" in str(failure(backend))


# Answers that are no chat completion


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "an empty body"),
        (b" \n", "an empty body"),
        (b"OK\n", "what is not JSON: OK"),
        (b'{"choices": [', 'what is not JSON: {"choices": ['),
        (b"\xff\xfe{}", "bytes that are not UTF-8"),
        (b"[" * 200_000, "JSON that is nested too deeply"),
        (b"<html><title>Log in</title>", "a web page instead of JSON, titled 'Log in'"),
        (b"  <!DOCTYPE html>", "a web page instead of JSON"),
        (b"null", "JSON that is not an object: null"),
        (b"[1]", "JSON that is not an object: [1]"),
        (b"{}", "JSON without 'choices': {}"),
        (b'{"choices": null}', "JSON without 'choices': {\"choices\": null}"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": [1]}', 'a choice without message: {"choices": [1]}'),
        (b'{"choices": [{"message": "x"}]}', 'a choice without message: {"choices": [{"message": "x"}]}'),
        (b'{"error": "quota"}', "an error: quota"),
        (b'{"error": {"message": "quota", "code": "insufficient"}}', "an error: quota"),
        (b'{"error": {"code": 7}}', 'an error: {"error": {"code": 7}}'),
        (b'{"choices": [{"error": {"message": "cut off"}, "message": {"content": "Well"}}]}', "an error: cut off"),
    ],
)
def test_malformed_answers(body: bytes, what: str, backend: Service, http: responses.RequestsMock) -> None:
    http.post(URL, body=body)
    error = failure(backend)
    assert isinstance(error, MalformedResponseError)
    assert str(error) == f"Service answered with {what}"


@pytest.mark.parametrize(
    ("choice", "what"),
    [
        ({"message": {"content": None}}, "no text"),
        ({"message": {"content": ""}, "finish_reason": "length"}, "no text (finish_reason length)"),
        ({"message": {"content": " \n"}}, "no text"),
        ({"message": {"content": []}}, "no text"),
        ({"message": {}}, "no text"),
        ({"message": {"content": 7}}, "content that is not text but int"),
        ({"message": {"content": None, "refusal": "I will not"}}, "a refusal: I will not"),
        ({"message": {"content": None, "tool_calls": [{"id": "1"}]}}, "a tool call and no text"),
        ({"message": {"content": [{"type": "thinking", "text": "hm"}]}}, "no text"),
    ],
)
def test_choices_without_text(
    choice: Mapping[str, Any], what: str, backend: Service, http: responses.RequestsMock
) -> None:
    http.post(URL, json={"choices": [choice]})
    error = failure(backend)
    assert isinstance(error, MalformedResponseError)
    assert str(error) == f"Service answered with {what}"


@pytest.mark.parametrize(
    ("code", "kind"),
    [(429, BackendHTTPError), ("502", BackendHTTPError), (401, AuthenticationError), (200, MalformedResponseError)],
)
@pytest.mark.parametrize("place", ["top", "choice"])
def test_an_error_in_an_answer_with_status_200(
    place: str, code: Any, kind: type[BackendError], backend: Service, http: responses.RequestsMock
) -> None:
    holder: dict[str, Any] = {"error": {"message": "no", "code": code}}
    http.post(URL, json=holder if place == "top" else {"choices": [holder]})
    error = failure(backend)
    assert type(error) is kind
    assert str(error).endswith(": no")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("42", "42"),
        (" 42\n", " 42\n"),
        ([{"type": "text", "text": "4"}, {"type": "image_url"}, {"type": "output_text", "text": "2"}], "42"),
        ("\ud83d cut", "\N{REPLACEMENT CHARACTER} cut"),
        ("\N{GRINNING FACE}", "\N{GRINNING FACE}"),
    ],
)
def test_answers(content: Any, text: str, backend: Service, http: responses.RequestsMock) -> None:
    http.post(URL, json={"error": None, "choices": [{"message": {"content": content}}]})
    assert backend.run("hi") == text


def test_a_byte_order_mark_is_no_harm(backend: Service, http: responses.RequestsMock) -> None:
    http.post(URL, body=b"\xef\xbb\xbf" + json.dumps(ANSWER).encode())
    assert backend.run("hi") == "42"


MEMBERS = (
    *("choices", "message", "content", "error", "code", "metadata", "raw", "provider_name"),
    *("text", "type", "refusal", "tool_calls", "finish_reason", "detail"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["502", "text", "42"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(MEMBERS) | st.text(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
SHAPED = st.builds(
    lambda content, rest: {"choices": [{"message": {"content": content, "refusal": rest}, "error": rest}]}, JSON, JSON
)


@given(JSON | SHAPED | st.binary())
def test_any_body_is_a_text_or_a_backend_error(document: Any) -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    endpoint = Endpoint("Service", URL, "SERVICE_BASE_URL", "SERVICE_API_KEY", True, (KEY,))
    try:
        shown = AnswerReader(endpoint, read=chat_text).whole([body]).text
    except BackendError as error:
        shown = str(error)
        limit = MAX_QUOTE + 100
        assert (shown.isprintable(), len(shown) < limit) == (True, True)
    assert shown.strip()
    shown.encode()


# The network


def test_nobody_listens(backend: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    host = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("SERVICE_BASE_URL", f"http://{host}/v1")
    error = failure(backend)
    assert type(error) is BackendConnectionError
    assert str(error) == f"no answer from Service at {host}: the connection was refused"
    assert error.hint == "check SERVICE_BASE_URL"


def test_a_host_that_does_not_exist(backend: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_arguments: object, **_named: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("SERVICE_BASE_URL", "http://nobody.invalid/v1")
    error = failure(backend)
    assert type(error) is BackendConnectionError
    assert str(error) == "no answer from Service at nobody.invalid: the name of the host is not known"


def test_https_where_http_is_spoken(backend: Service, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(http_answer(b"")) as server:
        monkeypatch.setenv("SERVICE_BASE_URL", f"https://{server.host}/v1")
        error = failure(backend)
    assert type(error) is BackendConnectionError
    assert str(error) == f"no answer from Service at {server.host}: TLS failed (wrong version number)"


def test_a_file_of_certificates_that_is_not_there(backend: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent/ca.pem")
    error = failure(backend)
    assert isinstance(error, ConfigError)
    assert str(error) == "REQUESTS_CA_BUNDLE names /nonexistent/ca.pem, which is not there"
    assert error.hint == "correct REQUESTS_CA_BUNDLE, or unset it"


def test_of_a_list_of_directories_with_certificates_one_has_to_be_there(
    backend: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SERVICE_BASE_URL", "https://127.0.0.1:1/v1")
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}/lost:{tmp_path}")
    assert isinstance(failure(backend), BackendConnectionError)
    monkeypatch.setenv("SSL_CERT_DIR", "lost:gone")
    assert str(failure(backend)) == "SSL_CERT_DIR names lost:gone, which is not there"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def reset_at_once(exchange: Exchange) -> None:
    exchange.reset()


def reset_in_mid_body(exchange: Exchange) -> None:
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    exchange.stopping.wait(0.1)  # so that the client is reading the body
    exchange.reset()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (reset_at_once, "the server closed the connection"),
        (b"", "the server closed the connection"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "the answer is not HTTP: SSH-2.0-OpenSSH_9.6"),
        (b"-ERR unknown \x1b[2J\r\n", "the answer is not HTTP: -ERR unknown \N{REPLACEMENT CHARACTER}[2J"),
        (
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 150 + b"\r\n",
            "the head of its answer is invalid: got more than 100 headers",
        ),
        (
            b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
            "the head of its answer is invalid: got more than 65536 bytes when reading header line",
        ),
    ],
)
def test_a_connection_that_breaks(reply: Reply, reason: str, backend: Service, serve: Any) -> None:
    with serve(reply) as server:
        error = failure(backend)
    assert type(error) is BackendConnectionError
    assert str(error) == f"no answer from Service at {server.host}: {reason}"
    assert error.hint == "check SERVICE_BASE_URL"


@pytest.mark.parametrize("alert", [b"\x15\x03\x01\x00\x02\x02\x0a", b"\x15\x03\x03\x00\x02\x02\x46"])
def test_a_server_that_speaks_tls(alert: bytes, backend: Service, serve: Any) -> None:
    with serve(alert) as server:
        error = failure(backend)
    assert str(error) == f"no answer from Service at {server.host}: it expects TLS"
    assert error.hint == "begin the address with https://; check SERVICE_BASE_URL"


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (407, "the proxy wants a user name and a password: check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"),
        (413, "it takes no request of this size: send less text, or smaller attachments"),
    ],
)
def test_statuses_that_need_a_remedy_of_their_own(status: int, hint: str, backend: Service, serve: Any) -> None:
    with serve(http_answer(b"", status)):
        assert failure(backend).hint == hint


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        ("iso-8859-1", "latin-1"),
        ('"windows-1252"', "cp1252"),
        ("iso-8859-1", "utf-8"),  # said of UTF-8 by many
        ("GBK", "gbk"),
        ("Shift_JIS", "shift_jis"),
        ("utf-16", "utf-16"),
        ("no-such-charset", "utf-8"),
        ("base64", "utf-8"),
    ],
)
def test_the_charset_of_an_answer_is_heeded(charset: str, encoding: str, backend: Service, serve: Any) -> None:
    text = {"gbk": "通信 你好", "shift_jis": "日本語"}.get(encoding, "Grüße, né") * 3000  # more than a piece
    kind = f"application/json; charset={charset}"
    body = json.dumps({"choices": [{"message": {"content": text}}]}, ensure_ascii=False)
    said = json.dumps({"error": {"message": text[:9]}}, ensure_ascii=False)
    with serve(
        http_answer(body.encode(encoding), headers={"Content-Type": kind}),
        http_answer(said.encode(encoding), 400, headers={"Content-Type": kind}),
    ):
        assert backend.run("hi") == text
        assert text[:9] in failure(backend).message


def test_compression_that_no_header_names_is_named(backend: Service, serve: Any) -> None:
    with serve(http_answer(gzip.compress(json.dumps(ANSWER).encode()))):
        error = failure(backend)
    assert isinstance(error, MalformedResponseError)
    assert str(error) == "Service answered with data compressed by gzip that the header Content-Encoding does not name"


@pytest.mark.parametrize(
    ("reply", "how"),
    [
        (reset_in_mid_body, "1 byte: the server closed the connection"),
        (http_answer(b"{", headers={"Content-Length": "9"}), "1 byte"),
        (CHUNKED + b"5\r\n{", "1 byte"),
        (CHUNKED + b"2\r\n{}\r\n", "2 bytes"),
        (CHUNKED + b"zz\r\n{", "0 bytes"),
    ],
)
def test_a_connection_that_breaks_in_the_middle(reply: Reply, how: str, backend: Service, serve: Any) -> None:
    with serve(reply) as server:
        error = failure(backend)
    assert type(error) is BackendConnectionError
    assert str(error) == f"the connection to Service at {server.host} broke in the middle of the answer, after {how}"
    assert error.hint is None  # the address is right


def test_broken_headers(backend: Service, serve: Any) -> None:
    with serve(b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n{}"):
        assert isinstance(failure(backend), MalformedResponseError)


def silent(exchange: Exchange) -> None:
    exchange.stopping.wait(60)


def silent_in_mid_body(exchange: Exchange) -> None:
    exchange.connection.sendall(CHUNKED + b"1\r\n{\r\n")
    exchange.stopping.wait(60)


@pytest.mark.parametrize(
    ("reply", "what"),
    [(silent, "nothing for 0.3 s"), (silent_in_mid_body, "nothing more for 0.3 s, after 1 byte of its answer")],
)
def test_a_server_that_says_nothing(reply: Reply, what: str, serve: Any) -> None:
    with serve(reply) as server:
        error = failure(Hasty())
    assert type(error) is BackendTimeoutError
    assert str(error) == f"Service at {server.host} sent {what}"


def test_a_server_that_never_ends(serve: Any) -> None:
    def dripping(exchange: Exchange) -> None:
        exchange.connection.sendall(CHUNKED)
        while not exchange.stopping.wait(0.05):
            exchange.connection.sendall(b"1\r\n \r\n")

    with serve(dripping) as server:
        error = failure(Limited())
    assert type(error) is BackendTimeoutError
    assert str(error) == f"Service at {server.host} did not finish its answer within 0.6 s"


def test_a_connection_that_takes_too_long(http: responses.RequestsMock) -> None:
    http.post(URL, body=requests.exceptions.ConnectTimeout("urllib3 noise"))
    error = failure(Hasty())
    assert type(error) is BackendTimeoutError
    assert str(error) == "no connection to Service at api.example within 0.3 s"


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_an_answer_without_end(encoding: str, serve: Any) -> None:
    class Small(Service):
        max_answer_bytes = 1_000_000

    body = b" " * 100_000_000
    sent = gzip.compress(body, 1) if encoding == "gzip" else body[:20_000_000]
    backend = Small()
    with serve(http_answer(sent, headers={"Content-Encoding": encoding})):
        tracemalloc.start()
        try:
            error = failure(backend)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert isinstance(error, MalformedResponseError)
    assert str(error) == "Service sent an answer of more than 1,000,000 bytes; the rest was not read"
    assert peak < 20_000_000


def test_the_error_of_a_server_may_be_long_too(backend: Service, serve: Any) -> None:
    with serve(http_answer(gzip.compress(b"x" * 50_000_000, 1), 500, {"Content-Encoding": "gzip"})):
        assert str(failure(backend)).endswith("xxx...")


def test_broken_compression(backend: Service, serve: Any) -> None:
    with serve(http_answer(b"no gzip at all", headers={"Content-Encoding": "gzip"})):
        error = failure(backend)
    assert isinstance(error, MalformedResponseError)
    assert str(error) == "Service sent an answer whose compression is broken"


def test_ctrl_c_passes(backend: Service, http: responses.RequestsMock) -> None:
    def interrupted(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        raise KeyboardInterrupt

    http.add_callback(responses.POST, URL, callback=interrupted)
    with pytest.raises(KeyboardInterrupt):
        backend.run("hi")


# Sessions


def test_one_connection_serves_several_requests_and_nothing_else_is_kept(backend: Service, serve: Any) -> None:
    answer = http_answer(ANSWER, headers={"Set-Cookie": "a=b"}, keep_alive=True)
    with serve(answer) as server:
        assert [backend.run("hi") for _ in range(3)] == ["42"] * 3
        assert server.connections == 1
        backend.close()
        backend.close()
        assert backend.run("hi") == "42"
        assert server.connections == 2
    assert not any("cookie" in request.headers for request in server.requests)


def test_threads_share_one_session(backend: Service, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[requests.Session] = []
    create = requests.Session.__init__

    def counting(session: requests.Session) -> None:
        made.append(session)
        create(session)

    monkeypatch.setattr(requests.Session, "__init__", counting)
    start = threading.Barrier(8)

    def ask(_number: int) -> str:
        start.wait()
        return backend.run("hi")

    with serve(chat_answer("42")), ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == ["42"] * 8
    assert len(made) == 1


def test_a_subclass_may_have_its_own_init(http: responses.RequestsMock) -> None:
    class Named(Service):
        def __init__(self) -> None:  # without super().__init__()
            self.name = "x"

    http.post(URL, json=ANSWER)
    assert Named().run("hi") == "42"


def test_a_subclass_that_names_nothing() -> None:
    class Bare(ChatCompletionsBackend):
        pass

    assert str(failure(Bare())) == "the base URL of Bare is not set"


def test_reprs_show_no_key(http: responses.RequestsMock) -> None:
    endpoint = Endpoint("Service", URL, "SERVICE_BASE_URL", "SERVICE_API_KEY", True, (KEY,))
    assert "sk-planted" not in f"{_KeyAuth(KEY)!r} {endpoint!r} {Service()!r}"
