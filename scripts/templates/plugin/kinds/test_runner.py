import os
from pathlib import Path

import pytest
from llm import Step, StepContext, StepResult
from llm.host import Host
from llm.testing import host_with

from {{ module }}.plugin import {{ title }}


@pytest.fixture
def host() -> Host:
    made = host_with()
    made.register({{ title }}(), "{{ short }}")
    return made


def run(host: Host, step: Step) -> tuple[StepResult, str]:
    written: list[bytes] = []
    context = StepContext("test", 1, 1, {"PATH": os.environ["PATH"], "MARK": "it is mine"}, written.append)
    result = host.caller("llm_run_step")(step=step, context=context)
    return result, b"".join(written).decode()


@pytest.mark.parametrize("command", ["nice", ["nice"]])
def test_a_step_is_nice(host: Host, command: str | list[str]) -> None:
    result, output = run(host, Step(command))
    assert (result.status, result.origin and result.origin.plugin) == (0, "{{ short }}")
    assert int(output) >= 10


def test_status_environment_and_directory_are_those_of_the_step(host: Host, tmp_path: Path) -> None:
    result, output = run(host, Step('echo "$MARK in $PWD"; exit 3', cwd=str(tmp_path)))
    assert result.status == 3
    assert output.split() == ["it", "is", "mine", "in", str(tmp_path)]


def test_the_timeout_of_a_step_is_kept(host: Host) -> None:
    assert run(host, Step("sleep 60", timeout=0.2))[0].status == 124


def test_the_configuration_says_how_nice(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[plugins.{{ short }}]\nniceness = 19\n")
    monkeypatch.setenv("LLM_CONFIG_PATH", str(file))
    assert int(run(host, Step("nice"))[1]) == 19
