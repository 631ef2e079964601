import subprocess
from pathlib import Path

import pytest
from llm import Step
from llm.testing import host_with

from {{ module }} import plugin


def steps(goal: str, **parameters: object) -> tuple[Step, ...]:
    return host_with(plugin).recipes()["{{ short }}"].steps(goal, parameters)


@pytest.mark.parametrize("name", ["plain", "with space", "it's", "$(exit 3)", "-n", "; exit 3"])
def test_the_steps_run_whatever_the_goal_is_called(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "large").write_bytes(bytes(100_000))
    for step in steps(name):
        done = subprocess.run(step.command_line, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert f"{name}/large" in done.stdout


def test_the_parameter_decides_how_many_are_shown() -> None:
    assert "head -n 3" in steps(".", count=3)[1].command_line
