"""Reading shell steps out of a backend's answer."""

import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.recipes.plan import PlanError, steps_in
from llm.types import Completion


def commands(block: str, language: str = "sh") -> list[str]:
    return [step.command_line for step in steps_in(Completion(f"```{language}\n{block}\n```", "talker"))]


def refusal(block: str, language: str = "sh") -> str:
    with pytest.raises(PlanError) as caught:
        commands(block, language)
    return caught.value.message


def test_each_line_of_a_plain_list_is_a_step() -> None:
    block = '# first\nmkdir -p a\r\n\n  echo "it\'s" | wc -c  \nfor i in 1 2; do echo $i; done\n'
    assert commands(block) == ["mkdir -p a", 'echo "it\'s" | wc -c', "for i in 1 2; do echo $i; done"]


def test_a_line_that_goes_on_after_a_backslash_is_one_step() -> None:
    assert commands("echo one \\\n  two\necho a\\\\\necho three") == ["echo one   two", "echo a\\\\", "echo three"]


@pytest.mark.parametrize("block", ["echo 'one\\\ntwo'", "echo one # two \\\necho three"])
def test_a_backslash_that_the_shell_leaves_is_left(block: str) -> None:
    assert commands(block) == [block]


def test_a_comment_that_ends_with_a_backslash_hides_no_command() -> None:
    assert commands("# see \\\necho one") == ["echo one"]


def test_characters_that_only_python_takes_for_line_ends_do_not_split_a_command() -> None:
    assert commands("echo a\u2028rm -rf b\x0crm c") == ["echo a\u2028rm -rf b\x0crm c"]


WHOLE = {
    "a here-document": "cat > notes <<EOF\nrm -rf everything\n# kept\nEOF\necho done",
    "quotes over lines": "echo 'one\nrm -rf everything\n' two",
    "a loop": "for i in 1 2\ndo\n  echo $i\ndone",
    "a condition": "if true; then\n  echo yes\nfi",
    "a case": "case x in\n  x) echo yes ;;\nesac",
    "a group": "{\n  echo one\n}",
    "a subshell": "(\n  cd /\n  pwd\n)",
    "a function": "f() {\n  echo one\n}\nf",
    "a pipe at the end of a line": "echo one |\n  wc -c",
    "an operator at the end of a line": "true &&\n  echo one",
    "no shell at all": "echo (((",
}


@pytest.mark.parametrize("block", WHOLE.values(), ids=WHOLE)
def test_a_block_with_a_command_of_several_lines_is_one_step(block: str) -> None:
    assert commands(block) == [block]


@pytest.mark.parametrize("block", ["", "# only a comment", "\n\n"])
def test_a_block_without_a_command_is_no_plan(block: str) -> None:
    assert "no command" in refusal(block)


def test_a_block_with_a_nul_is_no_plan() -> None:
    assert "NUL" in refusal("echo a\0b")


def test_prompts_are_taken_off() -> None:
    assert commands("# look\n$ echo one\n\n$ echo two", "console") == ["echo one", "echo two"]


@pytest.mark.parametrize("block", ["$ ls\nrm\n$ pwd", "$ cat <<EOF\n$ EOF"])
def test_what_stands_between_prompts_may_be_output_and_is_not_run(block: str) -> None:
    assert "output" in refusal(block, "console")


def test_a_lone_surrogate_is_no_reason_to_fail() -> None:
    assert commands("echo \ud800") == ["echo \ud800"]


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "echo one",
                "  ls -l",
                "# note",
                "# note \\",
                "",
                "EOF",
                "cat <<EOF",
                "for i in 1; do",
                "done",
                "echo \\",
                "(",
            ]
        ),
        st.text("ab'\"\\`$#(){}<|&; \t", max_size=8),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60)
@given(LINES)
def test_every_line_ends_up_in_exactly_one_step_in_order(lines: list[str]) -> None:
    wanted = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    try:
        steps = commands("\n".join(lines))
    except PlanError:
        assert not wanted or wanted[0].startswith("$ ")
        return
    if wanted[0].startswith("$ "):
        return
    found = [line.strip() for step in steps for line in step.split("\n")]
    found = [line for line in found if line and not line.startswith("#")]
    assert re.sub(r"[\s\\]", "", "".join(found)) == re.sub(r"[\s\\]", "", "".join(wanted))
    if len(steps) > 1:
        for step in steps:
            assert "<<" not in step
            assert subprocess.run(["/bin/sh", "-n"], input=step.encode(), capture_output=True).returncode == 0
