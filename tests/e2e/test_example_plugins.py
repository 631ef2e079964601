"""The example plug-ins with heavy dependencies: their own tests, each in an environment of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import INDEX, ROOT
from tests.e2e.test_environments import tool
from tests.servers import FaultServer, free_port, http_answer

pytestmark = pytest.mark.e2e

EXAMPLES = ROOT / "examples" / "plugins"


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a virtual environment with packages, and return it; skip the test, and say why, where that is impossible."""

    def make(*packages: str | Path) -> Path:
        uv, directory = tool("uv"), tmp_path_factory.mktemp("peers") / "venv"
        cache = {"UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "uv-cache"))}
        cache |= {"UV_PYTHON_DOWNLOADS": "never", "UV_LINK_MODE": "copy"}
        commands: tuple[list[str | Path], ...] = (
            [uv, "venv", "-q", "--python", sys.executable, directory],
            [uv, "pip", "install", "-q", "--python", directory / "bin/python", *packages],
        )
        for command in commands:
            done = subprocess.run(
                command, env={**os.environ, **INDEX, **cache}, capture_output=True, text=True, timeout=900
            )
            if any(word in done.stderr for word in ("fetch", "request", "registry", "offline")):
                pytest.skip(f"NOT TESTED, because there is no environment for it: {done.stderr.strip()[-500:]}")
            assert done.returncode == 0, done.stderr
        return directory

    return make


def run_tests(venv: Path, name: str, **env: str) -> None:
    """Run the tests of an example in an environment."""
    options = ["-q", "-p", "no:cacheprovider", "-W", "error"]
    command: list[str | Path] = [venv / "bin/python", "-m", "pytest", *options, EXAMPLES / name / "tests"]
    path = f"{venv / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        command, env={**os.environ, "PATH": path, **env}, cwd=venv, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_otel(environment: Callable[..., Path]) -> None:
    run_tests(environment(ROOT, f"{EXAMPLES / 'otel'}[otlp,test]"), "otel")


def test_serve_with_the_openai_sdk_and_with_the_llm_of_simonw(environment: Callable[..., Path]) -> None:
    simonw = environment("llm") / "bin" / "llm"  # its import package has the name of ours: an environment of its own
    run_tests(environment(ROOT, f"{EXAMPLES / 'serve'}[test]"), "serve", SIMONW_LLM=str(simonw))


def test_mcp_with_the_client_of_its_sdk_and_with_a_policy(environment: Callable[..., Path]) -> None:
    run_tests(environment(ROOT, EXAMPLES / "policy", f"{EXAMPLES / 'mcp'}[test]"), "mcp")


def test_litellm_in_an_environment_and_a_process_of_its_own(environment: Callable[..., Path]) -> None:
    venv = environment(ROOT, f"{EXAMPLES / 'litellm'}[test]")
    path = f"{Path(tool('uv')).parent}:{os.environ['PATH']}"
    env = {**os.environ, **INDEX, "PATH": path, "UV_LINK_MODE": "copy", "UV_PYTHON": sys.executable}
    command: list[str | Path] = [venv / "bin/ai-cli", "litellm", "install"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    if any(word in done.stderr for word in ("fetch", "request", "offline")):
        pytest.skip(f"NOT TESTED, because there is no environment for it: {done.stderr.strip()[-500:]}")
    assert done.returncode == 0, done.stderr
    interpreter = done.stdout.partition("D0TTINO_LITELLM_PYTHON=")[2].partition(" ")[0]
    assert interpreter.startswith(os.environ["XDG_STATE_HOME"])
    run_tests(venv, "litellm", D0TTINO_LITELLM_PYTHON=interpreter)


TOGETHER = ("redact", "cache", "budget", "otel", "fallback-notify", "policy", "serve", "mcp")
MAIL = "ada@example.org"


@pytest.mark.parametrize("order", [TOGETHER, TOGETHER[::-1]], ids=["one order", "the other"])
def test_installed_together_in_any_order_all_hold_what_they_promise(
    environment: Callable[..., Path], order: tuple[str, ...], tmp_path: Path
) -> None:
    venv = environment(ROOT)
    for name in order:  # one after the other, as people do it
        extra = "[otlp]" if name == "otel" else ""
        command: list[str | Path] = [tool("uv"), "pip", "install", "-q", "--python", venv / "bin/python"]
        added = subprocess.run(
            [*command, f"{EXAMPLES / name}{extra}"], env={**os.environ, **INDEX}, capture_output=True, text=True
        )
        if "fetch" in added.stderr:
            pytest.skip(f"NOT TESTED, because there is no environment for it: {added.stderr.strip()[-500:]}")
        assert added.returncode == 0, added.stderr
    usage = {"prompt_tokens": 1000, "completion_tokens": 1000, "total_tokens": 2000}
    message = {"role": "assistant", "content": "Dear [EMAIL-1]"}
    said = {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
    with FaultServer(http_answer(said)) as server, FaultServer(http_answer(b"")) as collector:
        (tmp_path / "config.toml").write_text(
            f'primary_backend = "down"\nfallback_backend = "up"\nrouting_mode = "remote"\n'
            f'[servers.up]\nbase_url = "{server.url}/v1"\nmodel = "m"\n'
            f'[servers.down]\nbase_url = "http://127.0.0.1:{free_port()}/v1"\nmodel = "m"\n'
            "[models.m]\nprice_per_1k_tokens = 1\n"
        )
        env = {"LLM_CONFIG_PATH": str(tmp_path / "config.toml"), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}

        def send(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
            command: list[str | Path] = [venv / "bin/ai-cli", "send", *arguments]
            return subprocess.run(
                command, env={**os.environ, **env, **more}, cwd=tmp_path, capture_output=True, text=True
            )

        first = send(f"Write to {MAIL}")
        assert first.stdout == f"Dear {MAIL}\n", first.stderr
        assert "fallback: up answered in place of down" in first.stderr
        assert "--no-cache" in send("--help").stdout
        assert send(f"Write to {MAIL}", "-b", "up").stdout == f"Dear {MAIL}\n"
        assert len(server.requests) == 1  # the second answer came from the cache
        spent = {"D0TTINO_BUDGET_DAY": "1"}
        cached = send(f"Write to {MAIL}", "-b", "up", "--json", **spent)
        assert json.loads(cached.stdout)["plugin"] == "cache", cached.stderr
        refused = send("Write to nobody", "-b", "up", **spent)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "is spent: 2 of 1" in refused.stderr
        assert send(f"Write to {MAIL}", "-b", "up", "--no-cache").stdout == f"Dear {MAIL}\n"
        assert len(server.requests) == 2
        sent = [one.body for one in (*server.requests, *collector.requests)]
        assert len(collector.requests) == 5
        assert not any(MAIL.encode() in body for body in sent)
        home = Path(os.environ["HOME"])
        kept = [path for path in home.rglob("*") if path.is_file() and {"venv", "uv"}.isdisjoint(path.parts)]
        assert any(path.name == "answers.db" for path in kept)
        assert [path for path in kept if MAIL.encode() in path.read_bytes()] == []
        commands = subprocess.run(
            [venv / "bin/ai-cli", "--help"], env=os.environ, capture_output=True, text=True, check=True
        )
        assert all(f"\n  {name} " in commands.stdout for name in ("cache", "serve", "mcp"))
