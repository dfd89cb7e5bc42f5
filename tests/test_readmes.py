"""READMEs say what there is: their commands' verbs, options and files, their links and pictures. `python tests/readmes.py` runs the commands."""

import re
import sys
import time
from pathlib import Path

import pytest
from readme_inputs.commands import ROOT, Command, all_commands, commands_of, project_calls, readmes, simple_commands
from readme_inputs.drawn import INPUTS, Drawer, inputs_of, words_of
from readme_inputs.options import complaints
from readme_inputs.reasons import CODES, allowed_codes, reason_to_leave_out
from readme_inputs.sketches import open_names, whole
from readmes import choose, execute, judge, main, summary

README = r"""# digits

Install by `pip install uv` and `uv sync --extra onnx`; `fit` trains.

```bash
# all of them
uv run lightning run projects/digits/cli.py fit   # trains; see '#1'
uv run lightning run projects/digits/cli.py test \
  --data.root DATA && echo "a # b"                # measures

mkdir -p x; python -c "
print('it is', 1)
" > x/y
uv run lightning run projects/digits/cli.py serve &
for m in 0 1; do uv run lightning run projects/digits/cli.py join $m & done; wait
uv run lightning run projects/digits/cli.py predict FOLDER --out OUT
```

```python
print(images)
```

```python
# file: module.py
```

```yaml
uv: no command
```

```bash
#!/bin/bash
exit 1
```

| `lightning run projects/digits/cli.py predict FOLDER --out OUT` | `lightning run projects/digits/cli.py reproduce lag` |
"""


def test_commands_are_taken_out_as_written():
    found = list(commands_of(README, "projects/digits/README.md"))
    assert [(command.kind, command.line) for command in found] == [
        *(("inline", 3), ("inline", 3)),
        *(("bash", line) for line in (7, 8, 11, 14, 16)),
        ("python", 20),
        *(("inline", 36), ("inline", 36)),
    ]
    assert {command.part for command in found} == {"digits"}
    assert found[2].short == "uv run lightning run projects/digits/cli.py fit"
    assert found[3].text.splitlines()[1].startswith("  --data.root DATA &&")
    assert found[3].short.endswith('--data.root DATA && echo "a # b"')
    assert found[4].text == "mkdir -p x; python -c \"\nprint('it is', 1)\n\" > x/y"
    assert found[5].text.splitlines()[1].startswith("for m in 0 1"), "what stays in the background goes with what waits for it"
    assert list(project_calls(found[5].text)) == [("digits", ["serve"]), ("digits", ["join", "$m"])]
    assert simple_commands(found[3].text)[1] == ["echo", "a # b"]


def test_a_command_that_a_block_has_is_not_taken_from_the_text_again(tmp_path):
    for name in ("README.md", "CONTRIBUTING.md", "projects/digits/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(README if "digits" in name else "A table: | `lightning run projects/digits/cli.py reproduce lag` |\n")
    found = all_commands(tmp_path)
    assert [command.kind for command in found] == ["bash"] * 5 + ["python"] + ["inline"] * 3
    assert sum("predict FOLDER" in command.text for command in found) == sum("reproduce lag" in command.text for command in found) == 1


@pytest.mark.parametrize("readme", readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_known_to_their_projects(readme):
    found = [command for command in all_commands() if command.file == str(readme.relative_to(ROOT))]
    assert found
    wrong = {f"{command.file}:{command.line}: {command.short}": complaints(command) for command in found if " ..." not in command.short}
    assert not {command: complaint for command, complaint in wrong.items() if complaint}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("cafe fitt", "no verb fitt"),
        ("cafe attack --methods dlg", "no option --methods"),
        ("cafe attack --method all", "is one of"),
        ("cafe attack --rounds many", "is a number"),
        ("vafl fit --model.protocol.wait 4", "wait is none of"),
        ("vafl fit --config mine", "no configuration mine"),
        ("vafl test a b", "takes 1 option"),
        ("forgery_nas fit --data.roots x", "roots is none of"),
        ("nothing fit", "no project nothing"),
    ],
)
def test_what_a_project_does_not_know_is_told(words, complaint):
    project, _, arguments = words.partition(" ")
    command = Command(project, "README.md", 1, f"lightning run projects/{project}/cli.py {arguments}")
    assert complaint in " ".join(complaints(command))


BROUGHT = re.compile(r"[A-Z][A-Z_]{2,}\d*|[^*]*\.(png|jpg|wav|npz|npy|nc|h5|csv|tsv|pth|pt|tar|safetensors|ckpt|py|json|zarr)")
MADE_BY = ("--out", "--output", "--run", ">")


def test_everything_that_a_command_takes_is_drawn_or_left_by_one_before_it():
    missing, earlier = [], ""
    for command in all_commands():
        earlier = earlier if earlier.startswith(command.part) else command.part
        if command.kind != "python" and not reason_to_leave_out(command):
            drawn = {one.name for one in inputs_of(command)}
            words = list(words_of(command))
            for before, word in zip(["", *words], words, strict=False):
                is_left = word in earlier or ("/" in word and not word.startswith("runs/") and word.partition("/")[0] in earlier)
                is_left |= word.startswith("runs/") and f"--run {word.split('/')[2]}" in earlier
                if BROUGHT.fullmatch(word) and not (word in drawn or is_left or (ROOT / word).exists() or before in MADE_BY):
                    missing.append(f"{command.file}:{command.line}: {word}")
        earlier += command.text
    assert not missing


def test_every_input_is_named_by_a_command():
    named = {(command.part, one) for command in all_commands() for one in inputs_of(command)}
    assert {(part, one) for part, each in INPUTS.items() for one in each} == named


def test_inputs_are_drawn_anew_for_another_project_or_use(tmp_path):
    drawer = Drawer(tmp_path)
    commands = [command for command in all_commands() if {"DATA", "POISON"} <= {one.name for one in inputs_of(command)}][:2]
    assert not drawer.prepare(commands[0])
    assert len(list((tmp_path / "POISON").iterdir())) == 500
    assert (tmp_path / "DATA/cifar-10-batches-py").is_dir()
    assert not drawer.prepare(commands[1])
    assert len(list((tmp_path / "POISON").iterdir())) == 400
    assert [path.name for path in (tmp_path / "DATA").iterdir()] == ["cifar-100-python"]
    drawer.prepare(Command("cafe", "README.md", 1, "true"))
    assert not list(tmp_path.iterdir())


def test_names_that_python_leaves_open_are_given():
    left = {f"{command.file}:{command.line}": open_names(whole(command)) for command in all_commands() if command.kind == "python"}
    assert not {place: names for place, names in left.items() if names}


@pytest.mark.parametrize(("project", "verb"), sorted(CODES))
def test_a_readme_says_with_which_code_a_command_ends(project, verb):
    text = (ROOT / "projects" / project / "README.md").read_text(encoding="utf-8")
    told = {int(number) for sentence in re.findall(r"exit code [^|\n]*", text) for number in re.findall(r"(?<![\d.])\d(?![\d.])", sentence)}
    assert CODES[project, verb] - {0} <= told


@pytest.mark.parametrize("readme", readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_are_there(readme):
    text = re.sub(r"```.*?```", "", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = (readme.parent / path).resolve() if path else readme
        assert target.exists(), f"{readme}: {link}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, f"{readme}: {link}"


@pytest.mark.parametrize(
    ("text", "code", "output", "state"),
    [
        ("true", 0, "fit is done", "ok"),
        ("lightning run projects/cafe/cli.py audit", 3, "records leak", "ok"),
        ("lightning run projects/cafe/cli.py fit", 3, "", "failed"),
        ("true", 0, "Traceback (most recent call last):\nValueError: x", "failed"),
        ("serve & wait", 0, "error: no such port\nbye", "failed"),
        ("fit", None, "epoch 1\repoch 2", "runs"),
        ("fit", None, "error: no disk", "failed"),
    ],
)
def test_outcomes_are_judged_by_code_and_output(text, code, output, state):
    command = Command("cafe", "README.md", 1, text)
    outcome = judge(command, code, 1.0, f"$ {text}\n{output}")
    assert outcome.state == state
    assert ("FAILED" in summary([outcome])) == (state == "failed")
    assert state != "runs" or outcome.last in ("epoch 2",)


def test_a_command_is_stopped_with_all_that_it_started(tmp_path):
    script = f"{sys.executable} -c \"import time; print('begun', flush=True); time.sleep(60)\""
    began = time.monotonic()
    code, seconds = execute(f"{script} & {script}; touch late", tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path / "out.txt", 1.0)
    assert code is None
    assert 1.0 <= seconds <= time.monotonic() - began < 30
    assert not (tmp_path / "late").exists()
    assert (tmp_path / "out.txt").read_text().startswith("$ ")
    assert execute("echo $TOUCHSTONE_RUNS.; exit 3", tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path / "out.txt", 9.0)[0] == 3
    assert (tmp_path / "out.txt").read_text().splitlines()[1] == "."


def test_commands_are_listed_with_what_is_left_out(capsys):
    assert main(["--list", "--only", "drs", "--kinds", "bash"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("projects/drs/README.md:") for line in lines)
    assert sum("[left out: eight devices]" in line for line in lines) == 2
    assert allowed_codes(next(command for command in all_commands() if "drs/cli.py audit" in command.text)) == {0, 1}


def test_commands_are_chosen_by_part_kind_and_line():
    class Options:
        only, kinds, lines = ["digits"], ["bash"], [7, 8]

    found = list(commands_of(README, str(Path("projects/digits/README.md"))))
    assert [command.line for command in choose(found, Options)] == [7, 8]
