"""The terminal: commands of the stepper, and ``python -m tensorlite.trace`` as a command line."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from tensorlite import Tensor, trace
from tensorlite.ops.elementwise import Multiply
from tensorlite.trace import __main__ as command_line
from tensorlite.trace.stepper import Stepper
from tensorlite.trace.steps import COMPLETE, NONE, PARTIAL, Steps

ROOT = Path(__file__).resolve().parents[3]


class Net(tl.nn.Module):
    def __init__(self) -> None:
        self.fc = tl.nn.Linear(2, 2, rng=np.random.default_rng(0))

    def forward(self, x):
        h = self.fc(x)
        return h + h.relu()


@pytest.fixture(scope="module")
def tape():
    """A linear layer, a skip and a sum: 4 ops, backward begins, 4 steps back."""
    x = Tensor(np.array([[1.0, -2.0]], np.float32))
    with trace.record(check=True) as tape:
        loss = Net()(x).sum()
        loss.backward()
    return tape


def stepped(tape, *commands: str, **options) -> str:
    out = io.StringIO()
    Stepper(tape, out, **options).run(commands)
    return out.getvalue()


def after(tape, *commands: str) -> str:
    """What the last command prints."""
    return stepped(tape, *commands)[len(stepped(tape, *commands[:-1])):]


def test_steps_go_forward_and_back(tape):
    assert [event.kind for event in tape.events] == (
        ["forward"] * 4 + ["start"] + ["backward"] * 4)
    assert "step 1 of 9 · forward · linear #0" in stepped(tape)
    assert "step 2 of 9 · forward · relu #1" in after(tape, "n")
    assert "step 4 of 9 · forward · sum #3" in after(tape, "n 3")
    assert "step 7 of 9" in after(tape, "n 3", "")
    assert "step 3 of 9" in after(tape, "n 3", "b")
    assert after(tape, "b") == "this is the first step\n"
    assert after(tape, "n 100", "n") == "this is the last step\n"
    assert after(tape, "n x") == "COUNT: expected a number of steps, got 'x'\n"


def test_a_forward_step_shows_formula_line_inputs_and_what_is_saved(tape):
    text = stepped(tape)
    assert "y (1, 2) = x (1, 2) @ weight (2, 2) + bias (2,)" in text or (
        "y = x (1, 2) @ weight (2, 2) + bias (2,)" in text)
    assert "test_stepper.py" in text and "h = self.fc(x)" in text
    assert "in  x (1, 2)  [[1, -2]]" in text
    assert "weight: fc.weight (2, 2)" in text
    assert "saved for backward: (1, 2), (2, 2), 24 bytes" in text
    assert text.splitlines()[0].endswith(" fc")


def test_a_meeting_shows_both_parts_and_their_sum(tape):
    text = after(tape, "m")
    assert "step 8 of 9 · backward · relu #1" in text
    meeting = next(line for line in text.splitlines() if "paths meet" in line)
    piece = tape.events[7].pieces[0]
    assert piece.before.values == [1, 1]
    assert meeting.strip().startswith("◆ paths meet: [[1, 1]] + ")
    assert "✓ equals central differences of this op, every element" in text
    assert after(tape, "m", "m") == "no paths meet after this step\n"


def test_go(tape):
    assert "step 7 of 9" in after(tape, "g 7")
    assert "step 2 of 9 · forward · relu" in after(tape, "g relu")
    assert "step 8 of 9 · backward · relu" in after(tape, "g relu", "")
    assert "step 4 of 9 · forward · sum" in after(tape, "g #3")
    assert "step 9 of 9 · backward · linear" in after(tape, "g fc.bias")
    assert "step 9 of 9 · backward · linear" in after(tape, "g fc")
    assert "step 2 of 9 · forward · relu" in after(tape, "g (model)")
    again = after(tape, "n 100", "g fc")
    assert again.startswith("(no step after this one is about 'fc'; from the start again)\n")
    assert "step 1 of 9" in again
    assert after(tape, "g nowhere") == "g: no step is about 'nowhere'\n"
    assert after(tape, "g 10") == "g: there are steps 1 to 9, not 10\n"
    assert after(tape, "g") == "g: go where? A step's number, an op, a tensor or a module\n"


def test_print_follows_a_gradient(tape):
    h = tape.tensors[tape.ops[0].output].name
    assert "gradient: not yet computed" in after(tape, "n 4", f"p {h}")
    assert "gradient (a partial sum, 1 of 2 pieces): norm 1.414" in after(tape, "g 7", f"p {h}")
    assert "gradient (complete): norm" in after(tape, "g 8", f"p {h}")
    assert "gradient: not yet computed" in after(tape, "g 8", "p fc.weight")
    assert "gradient (complete): norm" in after(tape, "g 9", "p fc.weight")
    assert "gradient: none is wanted" in after(tape, "p x")
    assert "value: not yet computed" in after(tape, "p %5")
    assert "[[ 1, -2]]" in after(tape, "p x")
    assert after(tape, "p").count("value:") == 4
    assert after(tape, "p nothing") == "p: no tensor is called 'nothing'\n"


def test_listing_where_table_and_help(tape):
    assert ">" in after(tape, "i") and "h = self.fc(x)" in after(tape, "i")
    assert after(tape, "l") == after(tape, "i")
    assert "step 1: forward of linear #0, in module fc (Linear)" in after(tape, "w")
    rows = {line.split()[0]: line.split() for line in after(tape, "g 9", "t").splitlines()}
    gradients = [tape.tensors[t].grad for t in tape.ops[0].inputs[1:]]
    norm = np.hypot(*(g.norm for g in gradients))
    assert rows["fc"][:3] == ["fc", "Linear", "1"] and rows["fc"][4] == f"{norm:.4g}"
    assert "not yet" in after(tape, "t")
    assert "next meeting of paths" in after(tape, "h")
    assert after(tape, "dance 3") == "dance: no such command; h lists them\n"
    assert stepped(tape, "q", "n") == stepped(tape)


def test_lines_fit_and_colour_is_asked_for(tape):
    commands = [*["n", "p", "i", "w", "t"] * 9, "h"]
    plain = stepped(tape, *commands)
    assert max(map(len, plain.splitlines())) <= 80
    assert "\033" not in plain
    assert "\033[1m── step 1 of 9" in stepped(tape, colour=True)


def test_a_wrong_gradient_is_marked(monkeypatch):
    x = Tensor([2.0, 3.0], requires_grad=True)
    with monkeypatch.context() as patch, trace.record(check=True) as tape:
        patch.setattr(Multiply, "backward", staticmethod(lambda ctx, g: (g, g)))
        (x * Tensor([5.0, 7.0])).sum().backward()
    text = stepped(tape, "n 100")
    assert "✗ WRONG: at element 1 it is 1, central differences of this op give 7" in text
    assert "but its backward sent [1, 1]" in text


def test_how_far_a_gradient_has_come_over_two_backwards():
    w = Tensor(2.0, requires_grad=True)
    with trace.record() as tape:
        (w * w).backward()
        (w * 3.0).backward()
    steps = Steps(tape)
    number = next(t for t, record in enumerate(tape.tensors) if record.kind == "leaf")
    found = [steps.gradient(number, k) for k in range(len(tape.events))]
    assert [event.kind for event in tape.events] == [
        "forward", "start", "backward", "forward", "start", "backward"]
    assert [g.status for g in found] == [NONE, NONE, COMPLETE, COMPLETE, NONE, COMPLETE]
    assert found[2].summary.values == [4] and found[5].summary.values == [3]
    assert found[5].held.values == [4]
    assert "added to .grad, which held: norm 4" in stepped(tape, "n 100", "p w")


def test_partial_sums_count_the_pieces():
    x = Tensor(1.0, requires_grad=True)
    with trace.record() as tape:
        y = x * 2.0
        (y + (y + y)).backward()
    steps = Steps(tape)
    y = tape.ops[0].output
    found = [steps.gradient(y, k) for k in range(len(tape.events))]
    assert [(g.status, g.arrived, g.expected) for g in found[-3:]] == [
        (PARTIAL, 1, 3), (COMPLETE, 3, 3), (COMPLETE, 3, 3)]


SCRIPT = """\
import sys
import helper
import tensorlite as tl

def main():
    print("arguments", sys.argv[1:], __name__)
    w = tl.Tensor(3.0, requires_grad=True)
    (w * helper.TWO).backward()
    if "fail" in sys.argv:
        w @ w
    if "leave" in sys.argv:
        sys.exit(7)

main()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("TWO = 2.0\n")
    path = tmp_path / "program.py"
    path.write_text(SCRIPT)
    return path


def command(*arguments, stdin: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "tensorlite.trace", *map(str, arguments)],
                          input=stdin, capture_output=True, text=True, cwd=cwd, env=environment,
                          timeout=60)


def test_stepping_a_script_with_piped_commands(script: Path):
    done = command(script, "--step", "--check", "a", "--html", "x", stdin="n\n\np w\nq\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("arguments ['a', '--html', 'x'] __main__\n── step 1 of 3")
    assert "w · b = 3 · 2 = 6" in done.stdout
    assert "∂w = g · b = 1 · 2 = 2" in done.stdout
    assert "gradient (complete): norm 2" in done.stdout
    assert "\033" not in done.stdout


def test_json_is_clean(script: Path):
    done = command("--json", "-", script, "--", "--step")
    assert done.returncode == 0
    assert json.loads(done.stdout)["title"] == "program.py"
    assert done.stderr == "arguments ['--step'] __main__\n"


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = command_line.main(list(map(str, arguments)))
    return status, *capsys.readouterr()


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())


def test_files_are_written(script: Path, tmp_path: Path, capsys):
    before = sys.argv, sys.path[:]
    status, out, _ = run(capsys, script, f"--json={tmp_path / 'tape.json'}")
    assert status == 0 and out == "arguments [] __main__\n"
    assert len(json.loads((tmp_path / "tape.json").read_text())["events"]) == 3
    status, out, _ = run(capsys, "--html", tmp_path / "flow.html", script, "more")
    assert status == 0
    assert out.splitlines()[0] == "arguments ['more'] __main__"
    assert out.splitlines()[1].startswith(f"{tmp_path / 'flow.html'}: 3 steps, ")
    assert "<html" in (tmp_path / "flow.html").read_text()
    assert (sys.argv, sys.path[:]) == before


def test_without_an_option_or_a_terminal_it_is_summed_up(script: Path, capsys):
    status, out, _ = run(capsys, script)
    assert status == 0
    assert "program.py: 3 steps: 1 forward, 1 backward, at 0 of which paths meet" in out


def test_an_error_of_the_script(script: Path, capsys):
    status, out, err = run(capsys, script, "fail")
    assert status == 1
    assert err.startswith(f'Traceback (most recent call last):\n  File "{script}", line 14, in ')
    assert "runpy" not in err and "__main__.py" not in err
    assert err.splitlines()[-1].startswith("ValueError: matmul: ")
    assert "the script ended with ValueError: matmul: " in out
    assert "program.py: 3 steps" in out


def test_a_script_that_is_not_python(tmp_path: Path, capsys):
    (tmp_path / "x.py").write_text("a b\n")
    status, _, err = run(capsys, tmp_path / "x.py")
    assert status == 1
    assert "Traceback" not in err and "SyntaxError" in err


def test_the_exit_of_the_script_is_respected(script: Path, capsys):
    status, out, err = run(capsys, script, "leave")
    assert (status, err) == (7, "")
    assert "3 steps" in out


def test_what_cannot_be_done_is_said_in_a_line(script: Path, tmp_path: Path, capsys):
    assert run(capsys, tmp_path / "no.py") == (
        2, "", f"python -m tensorlite.trace: SCRIPT: there is no file '{tmp_path}/no.py'\n")
    status, _, err = run(capsys, script, "--html", tmp_path / "no" / "flow.html")
    assert status == 2 and err.count("\n") == 1 and "no folder" in err
    (tmp_path / "idle.py").write_text("import tensorlite\n")
    status, out, err = run(capsys, tmp_path / "idle.py")
    assert status == 1 and out == ""
    assert err == f"{tmp_path}/idle.py: applied no op of tensorlite: there is nothing to show\n"
    with pytest.raises(SystemExit) as stopped:
        run(capsys, "--foo", script)
    assert stopped.value.code == 2


def test_files_lie_where_they_were_asked_for_wherever_the_script_goes(
        tmp_path: Path, capsys, monkeypatch):
    (tmp_path / "away").mkdir()
    (tmp_path / "goes.py").write_text(
        "import os\nimport tensorlite as tl\nos.chdir('away')\n"
        "tl.Tensor(3.0, requires_grad=True).exp().backward()\n")
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "goes.py", "--json", "tape.json")[0] == 0
    assert (tmp_path / "tape.json").is_file() and not list((tmp_path / "away").iterdir())


def test_a_folder_is_no_file_to_write(script: Path, tmp_path: Path, capsys):
    status, out, err = run(capsys, script, "--html", tmp_path)
    assert status == 2 and out == "" and "is a folder" in err and err.count("\n") == 1


def test_a_pipe_is_written_to_not_replaced(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with trace.record() as tape:
        Tensor(3.0, requires_grad=True).exp().backward()
    taken: list[str] = []
    reader = threading.Thread(target=lambda: taken.append(pipe.read_text()))
    reader.start()
    tape.save_json(pipe)
    reader.join()
    assert json.loads(taken[0])["events"] and pipe.is_fifo()
