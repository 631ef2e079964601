"""Reading shell steps out of a backend's answer."""

import json
import re
import subprocess
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm.errors import D0ttinoError
from llm.plan import PlanError, ReadPlan, changes_only_itself, join_steps, lost_state, read_plan
from llm.types import Completion, Step


def commands(block: str, language: str = "sh") -> list[str]:
    return [step.command_line for step in read(f"```{language}\n{block}\n```").steps]


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


def test_half_a_character_in_a_step_is_no_plan() -> None:
    assert "cannot be run" in refusal(json.dumps([{"command": "echo \ud800"}]), "json")


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
    assume(not any(line.strip().startswith("```") for line in lines))  # that ends the block
    wanted = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    try:
        steps = commands("\n".join(lines))
    except PlanError as error:
        unended = "here-document" in error.message and any("<<" in line for line in wanted)
        assert unended or not wanted or wanted[0].startswith("$ ")
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


def read(text: str, **options: bool) -> ReadPlan:
    return read_plan(Completion(text, "talker"), **options)


ARRAY = '[{"command": "echo planned", "description": "says it"}]'
STEPS = (Step("echo planned", "says it"),)
IDEA = "One way would be\n```sh\necho THOUGHT\n```\nbut that would delete the work."


@pytest.mark.parametrize(
    "text",
    [
        f"<think>\n{IDEA}\n</think>\n\n{ARRAY}",
        f"{IDEA}\n</think>\n\n{ARRAY}",
        f"<thinking>{IDEA}</thinking>{ARRAY}",
        f"<reasoning>a <think>b</think>\n{IDEA}</reasoning>{ARRAY}",
        f"[THINK]{IDEA}[/THINK]{ARRAY}",
        f"◁think▷{IDEA}◁/think▷{ARRAY}",
        f"<THINK >{IDEA}</ THINK>{ARRAY}<think>{IDEA}",
    ],
)
def test_thoughts_are_no_part_of_a_plan(text: str) -> None:
    assert read(text) == (STEPS, "")


@pytest.mark.parametrize("text", [f"<think>{IDEA}</think> Which directory?", f"{IDEA}</think>", f"<think>{IDEA}"])
def test_an_answer_whose_only_commands_are_thoughts_is_no_plan(text: str) -> None:
    with pytest.raises(PlanError) as caught:
        read(text)
    assert "THOUGHT" not in caught.value.message


def test_tags_in_a_command_of_an_array_are_text() -> None:
    assert read("[\"grep '</think>' answers\"]").steps == (Step("grep '</think>' answers"),)


@pytest.mark.parametrize(
    "text",
    [
        f"```json\r\n{ARRAY}\r\n```\r\n",
        f"~~~json\n{ARRAY}\n~~~",
        f"   ```json title=plan\n   {ARRAY}\n   ```",
        f"````\n{ARRAY}\n````",
        f"```JSON\n{ARRAY}\n`````",
        f'{{"steps": {ARRAY}}}',
        f'{{"plan": {ARRAY}}}',
        f"\ufeff```json\r{ARRAY}\r```",
        f"{ARRAY}<|im_end|>",
        f"{ARRAY}</s>\n",
        f"<think>hm</think>\n<answer>\n{ARRAY}\n</answer>",
    ],
)
def test_an_array_is_found_in_each_kind_of_block(text: str) -> None:
    assert read(text) == (STEPS, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```sh\r\necho planned\r\n```", ["echo planned"]),
        ("  ~~~ bash\n  echo one\n    echo two\n  ~~~", ["echo one", "echo two"]),
        ("```sh\ntrue\n```", ["true"]),
        ("```{.sh}\ntrue\n```<|return|>", ["true"]),
        ("```shellscript\ntrue\n```", ["true"]),
        ('[{"command": "one\ntwo"}]', ["one\ntwo"]),
        ("```sh\n42\n```", ["42"]),
        ('["true"]', ["true"]),
        ("```sh\necho '```'\n```", ["echo '```'"]),
        ("~~~sh\necho a\n```\n~~~", ["echo a\n```"]),
    ],
)
def test_commands_are_found_in_each_kind_of_block(text: str, expected: list[str]) -> None:
    assert [step.command_line for step in read(text).steps] == expected


@pytest.mark.parametrize(
    "text",
    [
        "<answer>```sh\ntrue\n```</answer><answer>```sh\nfalse\n```</answer>",
        "true",
        "```\ntrue\n```",
        "`true`",
        "```sh\necho cut off",
        "```python\nprint()\n```",
    ],
)
def test_what_is_not_surely_a_plan_is_none(text: str) -> None:
    with pytest.raises(PlanError):
        read(text)


def test_words_around_a_block_are_returned_with_it() -> None:
    assert (
        read("I will not do this:\n```sh\nrm -rf x\n```\nDo not run it.").prose == "I will not do this:\nDo not run it."
    )


def test_several_blocks_are_one_plan_only_if_that_is_said() -> None:
    text = "Either\n```sh\necho one\n```\nor\n```sh\necho two\n```"
    with pytest.raises(PlanError, match="2 code blocks") as caught:
        read(text)
    assert caught.value.hint == "--join takes them as one, in a chat `/run join`"
    assert [step.command_line for step in read(text, join=True).steps] == ["echo one", "echo two"]


@pytest.mark.parametrize(
    "script", ["cat <<E > f\nhi", "cat <<'E' > f\nhi\n  E\ntouch x", "cat <<-E\nhi\n E", "cat << E"]
)
def test_a_here_document_without_an_end_is_refused(script: str) -> None:
    for answer in (f"```sh\n{script}\n```", json.dumps([script])):
        with pytest.raises(PlanError, match="a here-document in it does not end with a line 'E'"):
            read(answer)


@pytest.mark.parametrize(
    "script",
    [
        *("cat <<E > f\nhi\nE", "cat <<-'E'\n\thi\n\tE\ntouch x", "cat <<A <<B\nA\nB", "echo $((1<<n))"),
        *(
            "# as in <<E",
            "echo a # <<E",
            'cat <<< "$x"',
            'git commit -m "no <<HEAD"',
            "echo 'a <<E'",
            "cat <<\\E\n$x\nE",
        ),
    ],
)
def test_a_here_document_that_ends_is_read(script: str) -> None:
    assert [step.command for step in read(json.dumps([script])).steps] == [script]


def test_how_a_step_is_to_run_is_followed() -> None:
    item = {
        "command": ["ls", "-l"],
        "description": None,
        "cwd": "src",
        "env": {"A": "1"},
        "timeout": 5,
        "dangerous": True,
        "shell": None,
        "explanation": "lists",
    }
    assert read(json.dumps([item])).steps == (Step(("ls", "-l"), cwd="src", env={"A": "1"}, timeout=5, confirm=True),)
    assert read('[{"command": "a", "shell": "bash -e", "confirm": false}]').steps == (Step("a", shell="bash -e"),)


@pytest.mark.parametrize(
    "more",
    [
        {"sudo": True},
        {"user": "root"},
        {"run_in": "src"},
        {"cwd": 3},
        {"env": {"A": 1}},
        {"env": ["A=1"]},
        {"timeout": "5"},
        {"timeout": -1},
        {"shell": " "},
        {"confirm": "yes"},
        {"command": ["ls", 3]},
        {"command": []},
    ],
)
def test_what_cannot_be_followed_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="step 1"):
        read(json.dumps([{"command": "ls", **more}]))


@pytest.mark.parametrize(
    "answer",
    [
        '[{"command": "ls", "command": "rm -r ."}]',
        '[{"command": "ls", "env": {"A": "1", "A": "2"}}]',
        '[{"command": "ls", "cwd": "a", "cwd": null}]',
        '{"steps": ["ls"], "steps": ["rm -r ."]}',
    ],
)
def test_a_key_that_stands_there_twice_is_refused(answer: str) -> None:
    with pytest.raises(PlanError, match=r"twice|env|not a JSON array"):
        read(answer)


@pytest.mark.parametrize(
    "command",
    [
        "cd x",
        "cd x && export A=1",
        "A=1",
        "A=1; B=$HOME",
        ". venv/bin/activate",
        "source x\ncd y",
        "set -eu",
        "umask 077",
        "alias l='ls -l'",
        "trap 'rm x' EXIT",
        "conda activate x",
        'export PATH="a b:$PATH"',
        "cd x || exit 1",
        "cd x > /dev/null 2>&1",
        "cd $(git rev-parse --show-toplevel)",
        "{ cd x; }",
        "if [ -d x ]; then cd x; fi",
        "command cd x",
        'eval "cd x"',
        'eval "$(ssh-agent -s)"',
        "export A=1 && true",
        "f() { echo hi; }",
        "function g {\n  date\n}\n",
        'read -p "Name: " name',
        "exec > log",
        "set -e; exec >> log 2>&1",
        'exec 3< "a file"',
        "exec > >(tee log) 2>&1",
        "exec 3>&-",
    ],
)
def test_a_step_that_changes_only_its_own_shell(command: str) -> None:
    assert changes_only_itself(Step(command))


@pytest.mark.parametrize(
    "command",
    [
        *("for d in *; do cd $d; make; done", "if cd x; then make; fi", "command -v git", "make || exit 1"),
        *("f() { date; }; f", "read x; echo $x", 'eval "make"', "$(go env GOPATH)/bin/x", "cd x > log", "{ make; }"),
        *("cd x && make", "(cd x)", "A=1 make", "ls", "cd x | cat", "export A=1 > file", "echo cd x", "'", "cd x & y"),
        *("exec make", "exec make > log", "exec > log make", "exec > log; make", "echo exec > log", "exec > log | cat"),
        *("mkdir {src,test}", "touch {a,b}"),
    ],
)
def test_a_step_that_does_more(command: str) -> None:
    assert not changes_only_itself(Step(command))
    assert not changes_only_itself(Step(["cd", "x"]))


@pytest.mark.parametrize(
    "command",
    [
        *("bash", "/bin/bash -l", "sudo su -", "su - postgres", "su root", "sudo -i", "sudo -u postgres -i"),
        *("ssh host", "ssh -p 22 -i key me@host", "docker exec -it web bash", "kubectl exec -it p -- /bin/sh"),
        *("sudo chroot /mnt", "newgrp docker", "poetry shell", "nix develop"),
    ],
)
def test_a_step_that_opens_a_shell(command: str) -> None:
    for step in (Step(command), Step(command.split())):
        assert lost_state([step, Step("date")]) == {1: "shell"}
        assert lost_state([Step("date"), step]) == {}
        assert join_steps([step, Step("date")]) == (step, Step("date"))


@pytest.mark.parametrize(
    "command",
    [
        *("bash x.sh", "bash -c date", "su -c id me", "sudo -u me date", "ssh host uptime", "ssh -N -L 1:a:2 host"),
        *("docker exec web ls", "echo bash", "sh < x", "ssh-keygen", "chroot /mnt ls", "git push", "curl x | sh"),
    ],
)
def test_a_step_that_opens_none(command: str) -> None:
    assert lost_state([Step(command), Step("date")]) == {}


def test_steps_behind_a_change_of_the_shell_are_joined_with_it() -> None:
    steps = (Step("mkdir p", "makes"), Step("cd p", "goes"), Step("touch f", "adds", confirm=True))
    assert join_steps(steps) == (steps[0], Step("set -e\ncd p\ntouch f", "goes; adds", confirm=True))
    assert join_steps(steps[:2]) == steps[:2]
    with pytest.raises(D0ttinoError, match="step 3 cannot be joined with step 2: it has a cwd of its own"):
        join_steps((*steps[:2], Step("touch f", cwd="q")))


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ("server &", "wait"),
        ("server & echo started", "curl localhost; kill %1"),
        ("(cd x; server) > log 2>&1 &", "kill -9 %server"),
        ("server & sleep 1", "kill $!"),
        ("sleep 9 &", "make\nfg"),
    ],
)
def test_a_job_of_an_earlier_step_is_lost(first: str, later: str) -> None:
    steps = (Step("ls"), Step(first), Step("make"), Step(later))
    assert lost_state(steps) == {2: "job"}
    assert join_steps(steps) == (steps[0], Step(f"set -e\n{first}\nmake\n{later}"))


@pytest.mark.parametrize(
    ("first", "later"),
    [
        ("server &", "curl localhost"),
        ("server", "wait"),
        ("make && make test", "wait"),
        ("make > log 2>&1", "wait"),
        ("make &> log", "wait"),
        ("echo 'a & b' \\&", "wait"),
        ("server &", "other & wait"),
        ("server &", "echo wait; date +%d"),
        ("server &", "kill -9 12"),
    ],
)
def test_a_job_that_no_later_step_needs_is_not_lost(first: str, later: str) -> None:
    assert lost_state([Step(first), Step(later)]) == {}
    assert lost_state([Step(["server", "&"]), Step("wait")]) == {}


@pytest.mark.parametrize(
    ("command", "lost"),
    [
        ("mkdir p && cd p", True),
        ("git clone x; cd x", True),
        ("python -m venv v && . v/bin/activate", True),
        ("cd x && make && cd ..", False),
        ("pushd x && make && popd", False),
        ("cd x && mkdir y && cd y", True),
        ("cd ..", True),
        ("make | cd x", False),
    ],
)
def test_a_change_at_the_end_of_a_step_is_lost_as_well(command: str, lost: bool) -> None:
    assert changes_only_itself(Step(command)) == lost


@pytest.mark.parametrize("prompt", ["$ ", "% ", "user@host:~/src$ ", "[root@host ~]# ", "bash-5.1$ "])
def test_the_prompt_of_a_shell_is_no_part_of_a_command(prompt: str) -> None:
    assert commands(f"{prompt}echo a\n{prompt}echo b", "console") == ["echo a", "echo b"]
    assert commands(f"{prompt}echo a") == ["echo a"]


@pytest.mark.parametrize("indent", ["", "  ", "\t"])
def test_the_indentation_of_a_fence_is_none_of_its_commands(indent: str) -> None:
    text = "\n".join(indent + line for line in ("```sh", "cat <<EOF", "hi", "EOF", "```"))
    assert [step.command_line for step in read(text).steps] == ["cat <<EOF\nhi\nEOF"]
    assert [step.command_line for step in read("1. ```sh\n   ls\n   ```").steps] == ["ls"]


@pytest.mark.parametrize("command", ["echo '<think>x</think>' > f", "echo '<think>' > f", "grep -c '<thinking>' f"])
def test_a_command_may_speak_of_thoughts(command: str) -> None:
    assert commands(command) == [command]
    thoughts = f"<think>\n```sh\nrm x\n```\n</think>\n```sh\n{command}\n```"
    assert [step.command_line for step in read(thoughts).steps] == [command]
    begun_inside = f"```sh\nrm x\n{command}\n</think>\n```sh\nls\n```"
    assert [step.command_line for step in read(begun_inside).steps] == ["ls"]
    with pytest.raises(PlanError, match="it is not a JSON array"):
        read("Sure <think> so:\n```sh\nrm x\n```\n")


@pytest.mark.parametrize(
    "text", ["</s>" * 200_000 + "x", " " * 300_000 + "x", "\n" * 300_000 + "</s>", "<answer>" * 50_000]
)
def test_what_stands_around_an_answer_is_found_in_a_moment(text: str) -> None:
    with pytest.raises(PlanError):
        read(text)
