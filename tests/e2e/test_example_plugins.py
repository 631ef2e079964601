"""The example plug-ins with heavy dependencies: their own tests, each in an environment of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import INDEX, ROOT
from tests.e2e.test_environments import tool

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
