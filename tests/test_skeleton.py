"""The main job on a fresh installation, through the commands themselves."""

import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "scripts.ai_cli", *arguments], capture_output=True, text=True)


def test_the_sample_backend_answers() -> None:
    result = run("send", "-b", "sample", "hi")
    assert (result.returncode, result.stdout, result.stderr) == (0, "Sample answer to: hi\n", "")


def test_the_echo_recipe_prints_a_goal_as_text() -> None:
    result = run("recipe", "echo", "it's; touch owned", "--yes")
    assert (result.returncode, result.stdout) == (0, "it's; touch owned\n")
