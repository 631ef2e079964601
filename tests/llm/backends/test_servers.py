"""Servers of the configuration file: backends by name, without a line of code."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.errors import BackendError
from llm.hooks._manifest import Manifests
from llm.host import Host, create_host
from llm.redaction import MASK
from llm.router import CutAnswerError, NoAnswerError, choose_route, complete, stream
from llm.routing.fallback import RetryPolicy
from llm.routing.schema import instruction
from llm.types import Call, Request
from tests.servers import FaultServer, chat_answer, http_answer

ONCE = RetryPolicy(per_backend=1)
Configure = Callable[[str], Host]


@pytest.fixture
def configure(clean_environment: Path) -> Configure:
    file = clean_environment / ".config" / "d0ttino" / "config.toml"
    file.parent.mkdir(parents=True)

    def write(text: str) -> Host:
        file.write_text(text, encoding="utf-8")
        return create_host(entries=())

    return write


def test_a_server_is_a_backend_of_its_name(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORK_API_KEY", "planted-key")
    with FaultServer(chat_answer("42")) as server:
        host = configure(
            f"""
            [servers.work]
            base_url = "{server.url}/v1/"
            api_key = "work"
            model = "big"
            headers = {{ X-Team = "blue" }}
            options = {{ temperature = 0.5, top_p = 0.9 }}
            """
        )
        request = Request("6 times 7?", backend="work", options={"temperature": "1"})
        completion = complete(request, host=host)
    assert (completion.text, completion.backend, completion.model) == ("42", "work", "big")
    assert completion.plugin == "llm.backends.plugins.servers"
    (sent,) = server.requests
    assert sent.target == "/v1/chat/completions"
    assert (sent.headers["authorization"], sent.headers["x-team"]) == ("Bearer planted-key", "blue")
    assert sent.json() == {
        "model": "big",
        "messages": [{"role": "user", "content": "6 times 7?"}],
        "temperature": 1,
        "top_p": 0.9,
    }
    assert host.secret_names() >= {"WORK_API_KEY"}
    assert list(host.problems) == []


@pytest.mark.parametrize(
    ("address", "more", "local"),
    [
        ("http://127.0.0.1:8080/v1", "", True),
        ("http://localhost:11434/v1", "", True),
        ("http://[::1]:1/v1", "", True),
        ("https://example.com/v1", "", False),
        ("http://127.0.0.1:8080/v1", "local = false", False),
        ("http://gpu.lan:8000/v1", "local = true", True),
    ],
)
def test_whether_prompts_stay_on_this_machine(configure: Configure, address: str, more: str, local: bool) -> None:
    host = configure(f'[servers.one]\nbase_url = "{address}"\n{more}')
    assert host.backends()["one"].local is local


def test_the_whole_address_may_be_given(configure: Configure) -> None:
    models = http_answer({"data": [{"id": "m"}]})
    with FaultServer(chat_answer("42"), models) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}/v1/chat/completions"')
        complete(Request("hi", backend="one"), host=host)
        ask = host.backends()["one"].list_models
        assert ask is not None
        assert list(ask(Call())) == ["m"]
    assert [one.target for one in server.requests] == ["/v1/chat/completions", "/v1/models"]


def test_an_address_without_its_end_gets_a_hint(configure: Configure) -> None:
    with FaultServer(http_answer("404 page not found", status=404)) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"\n[servers.two]\nbase_url = "{server.url}/v1"')
        hints = []
        for backend in ("one", "two"):
            with pytest.raises(NoAnswerError) as caught:
                complete(Request("hi", backend=backend), host=host)
            hints.append("most servers have this interface below /v1" in str(caught.value.hint))
    assert hints == [True, False]


def test_the_name_of_a_variable_may_be_given_as_the_key(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANY_TOKEN", "planted-token")
    with FaultServer(chat_answer("42")) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"\napi_key = "COMPANY_TOKEN"')
        complete(Request("hi", backend="one"), host=host)
    assert server.requests[0].headers["authorization"] == "Bearer planted-token"


def test_a_missing_key_says_which_command_sets_it(configure: Configure) -> None:
    host = configure('[servers.work]\nbase_url = "http://127.0.0.1:9"\napi_key = "work"')
    with pytest.raises(NoAnswerError) as caught:
        complete(Request("hi", backend="work"), host=host)
    assert "the server 'work' needs an API key, and WORK_API_KEY is not set" in caught.value.message
    assert caught.value.hint == "set WORK_API_KEY, or run `ai-cli keys set work`"


def test_servers_without_a_key_are_used_if_nothing_is_configured(configure: Configure) -> None:
    host = configure(
        '[servers.a]\nbase_url = "http://127.0.0.1:1"\n[servers.b]\nbase_url = "http://127.0.0.1:2"\napi_key = "b"'
    )
    assert [one.backend for one in choose_route(Request("hi"), host.backends(), host).candidates] == ["a"]


def test_prices_give_costs_and_the_servers_own_cost_wins(configure: Configure) -> None:
    def answer(usage: dict[str, Any]) -> bytes:
        return http_answer({"choices": [{"message": {"content": "42"}}], "usage": usage})

    tokens = {"prompt_tokens": 1000, "completion_tokens": 200}
    streamed = json.dumps({"choices": [{"delta": {"content": "42"}, "finish_reason": "stop"}], "usage": tokens})
    events = http_answer(f"data: {streamed}\n\ndata: [DONE]\n\n", headers={"Content-Type": "text/event-stream"})
    with FaultServer(answer(tokens), answer({**tokens, "cost": 0.25}), events) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"\nprices = {{ input = 2, output = 10 }}')
        costs = [complete(Request("hi", backend="one"), host=host).usage for _ in range(2)]
        pieces = stream(Request("hi", backend="one"), host=host)
        assert list(pieces) == ["42"]
    assert pieces.completion is not None
    assert [usage.cost for usage in (*costs, pieces.completion.usage) if usage is not None] == [0.004, 0.25, 0.004]


@pytest.mark.parametrize(
    "told",
    [
        {"prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100}},
        {"prompt_cache_hit_tokens": 600, "prompt_tokens_details": {"cache_write_tokens": 100}},
        {"cache_read_input_tokens": 600, "cache_creation_input_tokens": 100},
    ],
)
def test_tokens_of_a_cache_have_prices_of_their_own(told: dict[str, Any], configure: Configure) -> None:
    tokens = {"prompt_tokens": 1000, "completion_tokens": 200, **told}
    with FaultServer(http_answer({"choices": [{"message": {"content": "42"}}], "usage": tokens})) as server:
        for more, cost, estimated in (
            ("", 4000, True),  # as if none were cached: the most that it can be
            (", cached = 0.5", 3100, True),
            (", cached = 0.5, cache_write = 3", 3200, False),
        ):
            host = configure(f'[servers.one]\nbase_url = "{server.url}"\nprices = {{ input = 2, output = 10{more} }}')
            usage = complete(Request("hi", backend="one"), host=host).usage
            assert usage is not None
            assert (usage.cached_tokens, usage.cache_write_tokens) == (600, 100)
            assert usage.estimated == estimated
            assert usage.cost == pytest.approx(cost / 1_000_000)


@pytest.mark.parametrize("told", [{"completion_tokens_details": {"reasoning_tokens": 150}}, {"reasoning_tokens": 999}])
def test_tokens_of_thoughts_are_those_that_the_server_counts(told: dict[str, Any], configure: Configure) -> None:
    tokens = {"prompt_tokens": 1000, "completion_tokens": 200, **told}
    with FaultServer(http_answer({"choices": [{"message": {"content": "42"}}], "usage": tokens})) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"')
        usage = complete(Request("hi", backend="one"), host=host).usage
    assert usage is not None
    assert usage.reasoning_tokens == min(200, told.get("reasoning_tokens", 150))


def test_prices_count_where_a_server_tells_no_tokens(configure: Configure) -> None:
    text = "a" * 400
    part = json.dumps({"choices": [{"delta": {"content": text}}]})
    cut = http_answer(f"data: {part}\n\n", headers={"Content-Type": "text/event-stream"})
    with FaultServer(chat_answer(text), cut) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"\nprices = {{ input = 2, output = 10 }}')
        usage = complete(Request("hi", backend="one"), host=host).usage
        pieces = stream(Request("hi", backend="one"), host=host)
        with pytest.raises(CutAnswerError):
            list(pieces)
    assert pieces.completion is not None
    for found in (usage, pieces.completion.usage):
        assert found is not None
        assert found.estimated
        assert found.cost == pytest.approx((1 * 2 + 100 * 10) / 1_000_000)


def test_usual_options_by_backend_and_model(configure: Configure) -> None:
    with FaultServer(chat_answer("42")) as server:
        host = configure(
            f"""
            [servers.one]
            base_url = "{server.url}"
            model = "usual"
            options = {{ top_p = 0.1, seed = 1 }}
            [backends.one]
            options = {{ seed = 2, max_tokens = 5 }}
            [models.usual]
            options = {{ max_tokens = 6 }}
            [models."vendor/large"]
            options = {{ max_tokens = 7 }}
            [models."one/vendor/large"]
            options = {{ max_tokens = 8, temperature = 0.5 }}
            [aliases]
            fast = "one/vendor/large"
            """
        )
        for request in (
            Request("hi", backend="one"),
            Request("hi", backend="one", model="other"),
            Request("hi", model="fast", options={"temperature": "1"}),
        ):
            complete(request, host=host)
    sent = [{key: value for key, value in one.json().items() if key != "messages"} for one in server.requests]
    assert sent == [
        {"model": "usual", "top_p": 0.1, "seed": 2, "max_tokens": 6},
        {"model": "other", "top_p": 0.1, "seed": 2, "max_tokens": 5},
        {"model": "vendor/large", "top_p": 0.1, "seed": 2, "max_tokens": 8, "temperature": 1},
    ]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", "hot", "the option 'temperature' must be a number, not 'hot'"),
        ("temperature", True, "the option 'temperature' must be a number, not True"),
        ("max_tokens", "1.5", "the option 'max_tokens' must be a whole number, not 1.5"),
        ("logprobs", "1", "the option 'logprobs' must be true or false, not 1"),
        ("logit_bias", "[]", "the option 'logit_bias' must be an object, not []"),
    ],
)
def test_an_option_of_another_type_is_not_sent(configure: Configure, name: str, value: Any, words: str) -> None:
    with FaultServer(chat_answer("42")) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"')
        with pytest.raises(NoAnswerError) as caught:
            complete(Request("hi", backend="one", options={name: value}), host=host)
    assert words in caught.value.message
    assert server.requests == []


def test_an_option_that_is_text_stays_text(configure: Configure) -> None:
    with FaultServer(chat_answer("42")) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"')
        options = {"user": "123", "service_tier": '"flex"', "seed": "123", "verbosity": "true"}
        complete(Request("hi", backend="one", options=options), host=host)
    sent = {name: server.requests[0].json()[name] for name in options}
    assert sent == {"user": "123", "service_tier": "flex", "seed": 123, "verbosity": "true"}


def test_a_misspelt_option_is_sent_and_told(configure: Configure) -> None:
    refused = http_answer({"error": {"message": "unknown field"}}, status=400)
    with FaultServer(chat_answer("42"), refused) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"')
        request = Request(
            "hi", backend="one", options={"temprature": "1", "my_own": 1, "max_tokens": 7.0, "stop": None}
        )
        assert complete(request, host=host).notices == (
            "the option 'temprature' is not known; did you mean 'temperature'?",
        )
        with pytest.raises(NoAnswerError) as caught:
            complete(request, host=host)
    assert "did you mean 'temperature'?" in str(caught.value.hint)
    assert server.requests[0].json()["temprature"] == 1


SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("instructed", [True, False])
def test_a_server_that_takes_no_schema_gets_it_in_the_prompt(
    configure: Configure, streamed: bool, instructed: bool
) -> None:
    refused = http_answer({"error": {"message": "This response_format type is unavailable now"}}, status=400)
    whole, words = chat_answer('{"age": 7}'), "Answer with JSON that follows this JSON Schema"
    with FaultServer(refused, whole, whole) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"')
        request = Request("how old?", backend="one", metadata={"schema": SCHEMA})
        if instructed:
            request = request.with_system(f"Be brief.\n\n{instruction(SCHEMA)}")
        for number in range(2):
            if streamed:
                pieces = stream(request, host=host)
                assert "".join(pieces) == '{"age": 7}'
                completion = pieces.completion
                assert completion is not None
            else:
                completion = complete(request, host=host)
                assert completion.text == '{"age": 7}'
            assert len(completion.attempts) == 1
            told = "takes no schema: it is" if number else "unavailable now"
            assert "in the prompt alone" in completion.notices[0]
            assert told in completion.notices[0]
    assert ["response_format" in one.json() for one in server.requests] == [True, False, False]
    (system, _) = server.requests[1].json()["messages"]
    assert system["content"].count(words) == 1


def test_a_refusal_for_another_reason_is_no_question_of_the_schema(configure: Configure) -> None:
    refused = http_answer({"error": {"message": "temperature must be below 2"}}, status=400)
    with FaultServer(refused) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"')
        with pytest.raises(NoAnswerError):
            complete(Request("how old?", backend="one", metadata={"schema": SCHEMA}), host=host)
    assert len(server.requests) == 1


def test_limits_of_a_minute_are_kept_without_asking(configure: Configure) -> None:
    usage = {"prompt_tokens": 90, "completion_tokens": 20}
    with FaultServer(http_answer({"choices": [{"message": {"content": "42"}}], "usage": usage})) as server:
        host = configure(
            f'[servers.few]\nbase_url = "{server.url}"\nrpm = 2\n[servers.short]\nbase_url = "{server.url}"\ntpm = 100'
        )
        for backend, number in (("few", 2), ("short", 1)):
            for _ in range(number):
                complete(Request("hi", backend=backend), host=host)
            with pytest.raises(NoAnswerError) as caught:
                complete(Request("hi", backend=backend), host=host, retries=ONCE)
            (attempt,) = caught.value.attempts
            assert "a minute, as configured, and they are used up" in str(attempt.error)
            assert attempt.status == 429
            assert attempt.retry_after is not None
            assert 0 < attempt.retry_after <= 60
    assert len(server.requests) == 3


def test_both_limits_of_a_minute_count_each_request_once(configure: Configure) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 5}
    with FaultServer(http_answer({"choices": [{"message": {"content": "42"}}], "usage": usage})) as server:
        host = configure(f'[servers.both]\nbase_url = "{server.url}"\nrpm = 4\ntpm = 1000')
        for _ in range(4):
            complete(Request("hi", backend="both"), host=host, retries=ONCE)
        with pytest.raises(NoAnswerError, match="takes 4 requests a minute"):
            complete(Request("hi", backend="both"), host=host, retries=ONCE)
    assert len(server.requests) == 4


def test_errors_name_the_server_and_its_place_and_no_secret(configure: Configure) -> None:
    with FaultServer(http_answer({"error": {"message": "no planted-header here"}}, status=404)) as server:
        host = configure(
            f'[servers.one]\nbase_url = "{server.url}"\nmodel = "m"\nheaders = {{ x-api-key = "planted-header" }}'
        )
        with pytest.raises(NoAnswerError) as caught:
            complete(Request("hi", backend="one"), host=host)
    assert "planted" not in caught.value.message + str(caught.value.hint)
    assert MASK in caught.value.message
    assert "the server 'one' answered HTTP 404" in caught.value.message
    assert "servers.one.base_url" in str(caught.value.hint)
    assert "`ai-cli models -b one` lists its models" in str(caught.value.hint)


def test_a_server_may_have_the_name_of_a_built_in_backend(configure: Configure) -> None:
    with FaultServer(chat_answer("mine")) as server:
        host = configure(f'[servers.openrouter]\nbase_url = "{server.url}"')
        assert complete(Request("hi", backend="openrouter"), host=host).text == "mine"
    assert [one.origin.plugin for one in host.backends().shadowed["openrouter"]] == ["backend:openrouter"]
    assert list(host.problems) == []


def test_manifests_do_not_answer_for_the_configuration(configure: Configure) -> None:
    for name in ("one", "two"):
        host = configure(f'[servers.{name}]\nbase_url = "http://127.0.0.1:9"')
        host = create_host(entries=(), manifests=Manifests.read())
        host.learn()
        assert {"one", "two"} & set(host.backends()) == {name}


def test_its_models(configure: Configure) -> None:
    models = {"object": "list", "data": [{"id": "small"}, {"id": "large"}, {"no": "id"}]}
    with FaultServer(http_answer(models)) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}/v1"\nmodel = "larg"')
        backend = host.backends()["one"]
        assert backend.list_models is not None
        assert backend.check is not None
        assert list(backend.list_models(Call())) == ["large", "small"]
        assert backend.check(Call()) == "it has no model 'larg'; did you mean 'large'?"
    assert {(one.method, one.target) for one in server.requests} == {("GET", "/v1/models")}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "no models for you"}}, "answered with an error: no models for you"),
        ({"success": False, "errors": [{"code": 10000, "message": "no token"}]}, "answered with an error: no token"),
        ({"base_resp": {"status_code": 1004, "status_msg": "login fail"}}, "refused a request without API key"),
        ("<!DOCTYPE html><title>Log in</title>", "answered with a web page instead of JSON, titled 'Log in'"),
        ("Too many requests, try again in 5 s", "answered with an error: Too many requests, try again in 5 s"),
        ("", "answered with an empty body"),
        ("Ollama is running", "answered with what is not JSON: Ollama is running"),
    ],
)
def test_why_a_server_lists_no_models_is_told_in_its_own_words(body: Any, words: str, configure: Configure) -> None:
    with FaultServer(http_answer(body)) as server:
        backend = configure(f'[servers.one]\nbase_url = "{server.url}/v1"').backends()["one"]
        assert backend.list_models is not None
        with pytest.raises(BackendError) as caught:
            backend.list_models(Call())
    assert words in caught.value.message


BROKEN = '[servers.one]\nbase_url = "no address"\n'


@pytest.mark.parametrize("command", [["--version"], ["--help"], ["send", "-b", "sample", "hi"], ["backends"]])
def test_a_broken_configuration_breaks_no_command_that_does_without(command: list[str], configure: Configure) -> None:
    configure(BROKEN)
    done = subprocess.run([sys.executable, "-m", "scripts.ai_cli", *command], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_who_asks_for_a_server_of_a_broken_configuration_hears_why(configure: Configure) -> None:
    configure(BROKEN)
    command = [sys.executable, "-m", "scripts.ai_cli", "send", "-b", "one", "hi"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "config.toml:2: servers.one.base_url must be an address" in done.stderr
    assert "warning" not in done.stderr
    listed = subprocess.run([*command[:3], "backends"], capture_output=True, text=True)
    assert "config.toml:2: servers.one.base_url must be an address" in listed.stderr


# --- servers that do not take all that OpenAI's takes ---


def refusal(words: str, status: int = 400) -> bytes:
    return http_answer({"error": {"message": words}}, status=status)


STREAM = http_answer(
    'data: {"choices": [{"index": 0, "delta": {"content": "42"}}]}\n\ndata: [DONE]\n\n',
    headers={"Content-Type": "text/event-stream"},
)


@pytest.mark.parametrize(
    "refused",
    [
        refusal("Unrecognized request argument supplied: stream_options"),
        refusal("stream_options: Extra inputs are not permitted", 422),
        http_answer(
            json.dumps({"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]}), 422
        ),
    ],
)
def test_a_server_that_takes_no_stream_options_is_asked_once_more_without_them(
    refused: bytes, configure: Configure
) -> None:
    with FaultServer(refused, STREAM) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"\nmodel = "m"')
        for _ in range(2):
            answer = stream(Request("hi", backend="one"), host=host)
            assert "".join(answer) == "42"
            assert answer.completion is not None
            assert (len(answer.completion.attempts), answer.completion.notices) == (1, ())
    assert ["stream_options" in one.json() for one in server.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("option", "other", "words"),
    [
        (
            "max_tokens",
            "max_completion_tokens",
            "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
        ),
        ("max_completion_tokens", "max_tokens", "body.max_completion_tokens: Extra inputs are not permitted"),
    ],
)
def test_a_limit_of_tokens_has_the_name_that_the_server_takes(
    option: str, other: str, words: str, configure: Configure
) -> None:
    with FaultServer(refusal(words), chat_answer("42")) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"\nmodel = "m"')
        asked = Request("hi", backend="one", options={option: "7"})
        first, second = complete(asked, host=host), complete(asked, host=host)
    assert (first.text, second.text) == ("42", "42")
    assert f"asked once more with {other!r} in place of {option!r}" in first.notices[0]
    assert [(one.json().get(option), one.json().get(other)) for one in server.requests] == [
        (7, None),
        (None, 7),
        (None, 7),
    ]


def test_a_server_that_takes_neither_name_is_asked_twice_at_most(configure: Configure) -> None:
    words = "unknown field: max_tokens, max_completion_tokens"
    with FaultServer(refusal(words)) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"\nmodel = "m"')
        with pytest.raises(NoAnswerError, match="unknown field"):
            complete(Request("hi", backend="one", options={"max_tokens": 7}), host=host)
    assert len(server.requests) == 2


def test_an_option_of_the_users_is_not_left_out_but_named(configure: Configure) -> None:
    words = "Unsupported value: 'temperature' does not support 0.7 with this model"
    with FaultServer(refusal(words)) as server:
        host = configure(f'[servers.one]\nbase_url = "{server.url}"\nmodel = "m"')
        with pytest.raises(NoAnswerError) as caught:
            complete(Request("hi", backend="one", options={"temperature": 0.7, "top_p": 1}), host=host)
    assert len(server.requests) == 1
    assert caught.value.hint is not None
    assert "change the option 'temperature'" in caught.value.hint
    assert "top_p" not in caught.value.hint


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions"])
def test_an_address_may_have_a_version_of_the_interface_behind_its_path(ending: str, configure: Configure) -> None:
    with FaultServer(http_answer({"data": [{"id": "m"}]}), chat_answer("42"), refusal("no", 404)) as server:
        url = server.url.replace("http://", "HTTP://")
        host = configure(f'[servers.azure]\nbase_url = "{url}/openai/deployments/d{ending}?api-version=2024-10-21"')
        backend = host.backends()["azure"]
        assert backend.list_models is not None
        assert list(backend.list_models(Call())) == ["m"]
        assert complete(Request("hi", backend="azure"), host=host).text == "42"
        with pytest.raises(NoAnswerError) as caught:
            complete(Request("hi", backend="azure"), host=host)
    assert "2024-10-21" not in f"{caught.value.message}{caught.value.hint}"
    assert [one.target for one in server.requests] == [
        "/openai/deployments/d/models?api-version=2024-10-21",
        *["/openai/deployments/d/chat/completions?api-version=2024-10-21"] * 2,
    ]
