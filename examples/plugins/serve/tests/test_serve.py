"""`ai-cli serve` as a program, and clients that others wrote: the SDK `openai`, and simonw's `llm`."""

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import openai
import pytest

from llm.testing import write_distribution

AI_CLI = str(Path(sys.executable).with_name("ai-cli"))
TOKEN = "a-token-for-tests"

BACKENDS = """
import os, time
from pathlib import Path
from llm import Backend, Completion, hookimpl
from llm.errors import BackendHTTPError
from llm.types import Usage

HERE = Path(os.environ["SIGNS"])

def until(name):
    while not (HERE / name).exists():
        time.sleep(0.01)

def pieces(prompt, request, options):
    try:
        yield "you "
        if "slow" in prompt:
            (HERE / "begun").touch()
            while "stuck" in prompt:
                time.sleep(0.05)
                yield "."
            until("go")
        yield f"said: {prompt}"
        if "cut" in prompt:
            raise BackendHTTPError("it broke: sk-aaaabbbbccccdddd1111", status=500)
        extra = "".join(f" [{a.media_type} {len(a.data)}]" for m in request.messages for a in m.attachments)
        extra += f" {dict(options)}" if options else ""
        yield extra + (f" system: {request.system}" if request.system else "")
        reason = "length" if "long" in prompt else "stop"
        yield Completion("", model="m-1", served_model="m-1b", usage=Usage(3, 4), finish_reason=reason)
    finally:
        (HERE / "ended").touch()

def whole(prompt, request, options):
    *texts, last = pieces(prompt, request, options)
    return Completion("".join(texts), model=last.model, served_model=last.served_model, usage=last.usage,
                      finish_reason=last.finish_reason)

def busy(prompt):
    raise BackendHTTPError("too many", status=429)

class Backends:
    @hookimpl
    def llm_backends(self):
        return [Backend("spell", whole, stream=pieces, models=("m-1",)), Backend("busy", busy)]
"""


class Server:
    """A running `ai-cli serve`."""

    def __init__(self, directory: Path, *arguments: str, **env: str) -> None:
        self.clients = []
        self.signs = directory / "signs"
        self.signs.mkdir(exist_ok=True)
        for sign in self.signs.iterdir():
            sign.unlink()
        site = directory / "site"
        if not site.exists():
            write_distribution(
                site,
                "spelling",
                entry_points={"llm.plugins": {"spelling": "spelling:Backends"}},
                files={"spelling.py": BACKENDS},
            )
        self.env = {**os.environ, "HOME": str(directory), "PYTHONPATH": str(site), "SIGNS": str(self.signs)}
        self.env |= {"D0TTINO_SERVE_TOKEN": TOKEN, "PYTHONUNBUFFERED": "1", "LLM_PRIMARY_BACKEND": "spell", **env}
        command = [AI_CLI, "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, env=self.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said = self.process.stderr.readline()
        found = re.search(r"http://(\S+):(\d+)/v1", self.said)
        assert found, self.said + self.process.stderr.read()
        self.address, self.port = found[1].strip("[]"), int(found[2])
        self.url = found[0]

    def client(self, token: str = TOKEN) -> openai.OpenAI:
        self.clients.append(openai.OpenAI(base_url=self.url, api_key=token, timeout=60))
        return self.clients[-1]

    def ask(self, body, method="POST", path="/v1/chat/completions", **headers):
        """Ask without an SDK, and return status, headers and body."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=60)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}", **headers}
        connection.request(method, path, content, {key: value for key, value in given.items() if value is not None})
        with closing(connection):
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def sign(self, name: str) -> None:
        deadline = time.monotonic() + 60
        while not (self.signs / name).exists():
            assert time.monotonic() < deadline, f"{name} does not come"
            time.sleep(0.01)


@contextmanager
def running(directory: Path, *arguments: str, **env: str):
    server = Server(directory, *arguments, **env)
    try:
        yield server
    finally:
        for client in server.clients:
            client.close()
        server.process.kill()
        server.process.communicate()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def server(directory):
    with running(directory) as started:
        yield started


def chat(text, **more):
    return {"model": "spell", "messages": [{"role": "user", "content": text}], **more}


def test_the_openai_sdk_gets_whole_answers_and_who_gave_them(server):
    raw = server.client().chat.completions.with_raw_response.create(**chat("hi"), temperature=0.5)
    answer = raw.parse()
    assert answer.choices[0].message.content == "you said: hi {'temperature': 0.5}"
    assert (answer.choices[0].finish_reason, answer.model) == ("stop", "m-1b")
    assert answer.usage.total_tokens == 7
    assert raw.headers["x-d0ttino-plugin"] == "spelling"
    assert raw.headers["x-d0ttino-distribution"] == "spelling"
    assert answer.model_extra["d0ttino"]["plugin"] == "spelling"
    assert answer.model_extra["d0ttino"]["attempts"][0]["backend"] == "spell"


def test_the_openai_sdk_gets_answers_in_pieces_as_they_come(server):
    (server.signs / "go").unlink(missing_ok=True)
    raw = server.client().chat.completions.with_raw_response.create(
        **chat("slow"), stream=True, stream_options={"include_usage": True}
    )
    assert raw.headers["x-d0ttino-plugin"] == "spelling"
    stream = raw.parse()
    texts = []
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            texts.append(chunk.choices[0].delta.content)
            if texts == ["you "]:
                (server.signs / "go").touch()  # the rest is not there before the first piece was
        last = chunk
        if chunk.choices and chunk.choices[0].finish_reason:
            about = chunk.model_extra["d0ttino"]
    assert "".join(texts) == "you said: slow"
    assert len(texts) > 1
    assert last.usage.total_tokens == 7
    assert about["plugin"] == "spelling"


def test_a_conversation_with_a_system_prompt_and_an_image(server):
    image = "data:image/png;base64," + base64.b64encode(b"12345").decode()
    messages = [
        {"role": "developer", "content": "Shout."},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "ok"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": image}}],
        },
    ]
    answer = server.client().chat.completions.create(model="spell/m-1", messages=messages)
    assert answer.choices[0].message.content.endswith("[image/png 5] system: Shout.")


def test_the_models_are_backends_and_theirs(server):
    names = [model.id for model in server.client().models.list()]
    assert {"auto", "spell", "spell/m-1", "sample", "busy"} <= set(names)
    assert "openrouter" not in names  # it has no key
    assert server.client().models.retrieve("spell/m-1").owned_by == "spelling"
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("spell/m-2")
    answer = server.client().chat.completions.create(model="auto", messages=[{"role": "user", "content": "hi"}])
    assert answer.model_extra["d0ttino"]["policy"]


def test_errors_are_those_of_openai_without_secrets_and_are_not_tried_again(server):
    with pytest.raises(openai.RateLimitError, match="too many") as caught:
        server.client().chat.completions.create(model="busy", messages=[{"role": "user", "content": "hi"}])
    assert len(caught.value.response.json()["d0ttino"]["attempts"]) >= 1
    with pytest.raises(openai.InternalServerError) as caught:
        server.client().chat.completions.create(**chat("cut"))
    assert "it broke" in str(caught.value)
    assert "sk-aaaa" not in str(caught.value.response.json())
    with pytest.raises(openai.APIError, match="cut short") as caught:
        list(server.client().chat.completions.create(**chat("cut"), stream=True))
    assert "sk-aaaa" not in str(caught.value)
    answer = server.client().chat.completions.create(**chat("long"))
    assert answer.choices[0].finish_reason == "length"
    assert server.process.poll() is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[" * 100_000, 400),
        ([], 400),
        ({"messages": []}, 400),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400),
        ({"messages": [{"role": "user", "content": 3}]}, 400),
        ({"messages": [{"role": "user", "content": " "}]}, 400),
        (chat("hi", n=2), 400),
        (chat("hi", tools=[{"type": "function"}]), 400),
        (chat("hi") | {"model": 3}, 400),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_refused_with_a_reason(server, body, status):
    found, _, text = server.ask(body)
    assert (found, json.loads(text)["error"]["type"]) == (status, "invalid_request_error")
    assert json.loads(text)["error"]["message"]


def test_nobody_gets_in_without_the_token(server):
    with pytest.raises(openai.AuthenticationError):
        server.client("wrong").chat.completions.create(**chat("hi"))
    for header in (None, "", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"):
        for path in ("/v1/chat/completions", "/v1/models", "/v1/models/spell"):
            method = "POST" if "chat" in path else "GET"
            assert server.ask(chat("hi"), method, path, Authorization=header)[0] == 401
    assert server.ask({}, "GET", "/v1/nothing")[0] == 404
    assert server.ask(chat("hi"), **{"Content-Type": "text/plain"})[0] == 415
    assert TOKEN not in server.said


def test_a_new_token_is_printed_if_none_is_set(directory):
    with running(directory, D0TTINO_SERVE_TOKEN="") as other:
        token = other.process.stderr.readline().strip().removeprefix("OPENAI_API_KEY=")
        assert len(token) > 20
        assert other.client(token).chat.completions.create(**chat("hi")).choices[0].message.content == "you said: hi"
        assert other.ask(chat("hi"))[0] == 401


def test_without_a_token_only_this_machine_gets_in_and_no_page_by_a_name_of_its_own(directory):
    with running(directory, "--no-token") as other:
        assert other.ask(chat("hi"), Authorization=None)[0] == 200
        assert other.ask(chat("hi"), Authorization=None, Host="evil.example.org")[0] == 400
        assert other.ask(chat("hi"), **{"Content-Type": "text/plain"})[0] == 415
    refused = subprocess.run(
        [AI_CLI, "serve", "--no-token", "--host", "0.0.0.0"], env=other.env, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "--no-token would let everybody" in refused.stderr


def test_a_client_that_leaves_ends_the_answer(server):
    (server.signs / "ended").unlink(missing_ok=True)
    (server.signs / "begun").unlink(missing_ok=True)
    stream = server.client().chat.completions.create(**chat("slow and stuck"), stream=True)
    next(iter(stream))
    server.sign("begun")
    stream.close()
    server.sign("ended")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_while_it_waits_ends_the_request_and_nobody_else_is_asked(tmp_path, streamed):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        env = {"OPENROUTER_API_KEY": "k", "OPENROUTER_BASE_URL": f"http://127.0.0.1:{listener.getsockname()[1]}/v1"}
        env |= {"LLM_PRIMARY_BACKEND": "openrouter", "LLM_FALLBACK_BACKEND": "spell", "LLM_ROUTING_MODE": "remote"}
        env["XDG_STATE_HOME"] = str(tmp_path / "state")
        with running(tmp_path, **env) as other:
            client = http.client.HTTPConnection(other.address, other.port, timeout=60)
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
            body = json.dumps(chat("hi", stream=streamed) | {"model": "auto"})
            client.request("POST", "/v1/chat/completions", body, headers)
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(60)
                assert connection.recv(65536)
                client.close()
                while connection.recv(65536):
                    pass  # until it is closed
            rows, deadline = [], time.monotonic() + 60
            while not rows:
                assert time.monotonic() < deadline
                done = subprocess.run([AI_CLI, "usage", "--json"], env=other.env, capture_output=True, text=True)
                rows = json.loads(done.stdout)
            assert [(row["backend"], row["attempts"], row["failed"]) for row in rows] == [("openrouter", 1, 1)]
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_ctrl_c_ends_it_cleanly_also_while_it_answers(directory):
    with running(directory) as other:
        stream = other.client().chat.completions.create(**chat("slow and stuck"), stream=True)
        next(iter(stream))
        other.sign("begun")
        other.process.send_signal(signal.SIGINT)
        out, err = other.process.communicate(timeout=60)
        assert (other.process.returncode, out, err) == (0, "", "stopped\n")


def test_a_port_that_is_taken_is_an_error_of_one_line(directory):
    with socket.create_server(("127.0.0.1", 0)) as taken, running(directory) as other:
        port = str(taken.getsockname()[1])
        done = subprocess.run([AI_CLI, "serve", "--port", port], env=other.env, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: cannot listen at 127.0.0.1, port {port}: ")


def test_many_clients_at_once(server):
    from concurrent.futures import ThreadPoolExecutor

    def ask(number):
        answer = server.client().chat.completions.create(**chat(f"number {number}"), stream=number % 2 == 0)
        if number % 2:
            return answer.choices[0].message.content
        return "".join(one.choices[0].delta.content or "" for one in answer if one.choices)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(40))) == [f"you said: number {number}" for number in range(40)]


def test_what_it_answers_counts_like_everything_else(server):
    done = subprocess.run([AI_CLI, "usage", "--json"], env=server.env, capture_output=True, text=True, check=True)
    assert any(row["backend"] == "spell" and row["input_tokens"] for row in json.loads(done.stdout))


SIMONW = os.environ.get("SIMONW_LLM", "")


@pytest.mark.skipif(not SIMONW, reason="NOT TESTED: SIMONW_LLM names no program `llm` of simonw")
def test_the_llm_of_simonw_talks_to_it(server, tmp_path):
    model = f"- model_id: d0\n  model_name: spell\n  api_base: {server.url}\n  api_key_name: d0\n"
    (tmp_path / "extra-openai-models.yaml").write_text(model)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LLM_USER_PATH": str(tmp_path)}
    for more in ([], ["--no-stream"], ["-o", "temperature", "0.5"]):
        command = [SIMONW, "-m", "d0", "--key", TOKEN, "hi", *more]
        done = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("you said: hi")
        assert ("0.5" in done.stdout) == ("0.5" in more)
    command[4] = "wrong"
    assert "token is missing, or wrong" in subprocess.run(command, env=env, capture_output=True, text=True).stderr
