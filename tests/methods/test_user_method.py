"""A method in a file of the user's: documented, run whole, and refused where it is none."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ltat.cli.main import main
from ltat.errors import LtatError
from ltat.methods import METHODS, absolute_method, find_method

DOCS = Path(__file__).parents[2] / "docs/methods/writing-a-method.md"
TINY = [
    *("--dataset", "digits", "--model", "small", "--epochs", "1", "--device", "cpu"),
    *("--set", "attack.steps=1", "--set", "select.set=none", "--set", "eval.n_examples=20"),
    *("--set", "eval.attacks=clean"),
]


def ltat(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def focus(tmp_path) -> Path:
    """The example of the documentation, as a file."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "focus.py").write_text(code)
    return tmp_path / "focus.py"


def test_the_documented_example_trains_and_takes_its_setting(focus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ltat("train", "--method", "focus.py:Focus", *TINY, "--set", "focus.power=2")
    assert done.exit_code == 0, done.output
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("digits-ir20-small-Focus-s0-")
    row = json.loads((run / "metrics.jsonl").read_text())
    assert 0 < row["confidence"] < 1 and row["loss"] > 0
    assert f'method = "{focus}:Focus"' in (run / "config.toml").read_text()
    assert "power = 2" in (run / "config.toml").read_text()


def test_a_file_without_docstrings_is_explained_without_blank_lines(focus):
    assert ltat("methods", f"{focus}:Focus").output == (
        "Cross-entropy on x', weighted by the confidence in the true class on x.\n\nfocus\n    focus.power=1.0\n"
    )


def test_resuming_executes_a_file_only_when_a_person_names_it(focus, tmp_path):
    run = tmp_path / "run"
    assert ltat("train", "--method", f"{focus}:Focus", *TINY, "--out", run).exit_code == 0
    focus.write_text("raise SystemError('executed')")
    refused = ltat("train", "--resume", "--out", run)
    assert refused.exit_code == 2 and f"--method {focus}:Focus" in refused.output
    assert "would be run" in refused.output and "executed" not in refused.output
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'method = "{tmp_path}/other.py:Focus"\n')
    assert "would be run" in ltat("train", "--recipe", recipe, "--dataset", "digits").output


def test_resuming_with_the_method_named_goes_on(focus, tmp_path):
    settings = ("train", "--method", f"{focus}:Focus", *TINY, "--out", tmp_path / "run")
    assert ltat(*settings).exit_code == 0
    again = ltat("train", "--resume", "--method", f"{focus}:Focus", "--out", tmp_path / "run")
    assert again.exit_code == 0, again.output


def test_the_same_name_gives_the_same_class(focus):
    name = absolute_method(f"{focus}:Focus")
    assert find_method(name) is find_method(name)


@pytest.mark.parametrize(
    ("content", "name", "fragment"),
    [
        (None, "Mine", "there is no file"),
        ("x = 1", "Mine", "has no method 'Mine'"),
        ("class Mine: pass", "Mine", "has no method 'Mine'"),
        ("def broken(:", "Mine", "cannot be imported (SyntaxError"),
        ("import nowhere_to_be_found", "Mine", "cannot be imported (ModuleNotFoundError"),
        ("from ltat.methods import Method\nclass Mine(Method): pass", "Mine", "has no settings"),
    ],
)
def test_a_file_without_a_method_is_one_sentence(tmp_path, content, name, fragment):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LtatError, match=re.escape(fragment)):
        find_method(f"{path}:{name}")


def test_a_wrong_setting_of_ones_own_method_names_it(focus):
    done = ltat("train", "--method", f"{focus}:Focus", *TINY, "--set", "focus.strength=2")
    assert done.exit_code == 2
    assert "'focus.strength'" in done.output and "Undefined" not in done.output


def test_the_list_of_methods_comes_from_their_docstrings():
    done = ltat("methods")
    assert done.exit_code == 0
    told = json.loads(ltat("methods", "--json").output)
    assert told.keys() == METHODS.keys()
    for name, facts in told.items():
        assert f"{name}\n    {facts['paper']}\n" in done.output
        assert facts["paper"] and facts["loss"]
    assert done.output.index("adaad+igdm\n") < done.output.index("every method (") < done.output.index("awp.gamma=0.0")
    common = ("radius.share=0.0", "average.kind=none", "aug.policy=none", "eval.attacks=", "tau=0.0", "select.from=1")
    assert all(setting in done.output.partition("every method (")[2] for setting in common)
    assert told["at-bsl"]["settings"].startswith("bsl.tau=1.0, loss.cls=bsl, ")
    assert told["pgd-at"]["attack"] == "PGD-10 on ce, eps 8/255, step 2/255, start gauss, eval mode"


RIGHT = """
import torch.nn.functional as F
from ltat.config import RunConfig
from ltat.methods import LossTerms, Method
class Right(Method):
    Config = RunConfig
    def loss(self, step):
        logits = step.model(step.x_adv)
        return LossTerms(F.cross_entropy(logits, step.batch.labels), logits, {})
"""
WRONG = {
    "def loss(self, *a): return None": "NoneType; return LossTerms",
    "def loss(self, *a): t = super().loss(*a); return t._replace(loss=t.loss * float('nan'))": "first step is nan",
    "def loss(self, *a): t = super().loss(*a); return t._replace(logits=t.logits[:1])": "logits of the method's",
    "def loss(self, *a): t = super().loss(*a); return t._replace(logs={'x': 'y'})": "logs.'x'.",
    "def loss(self, *a): return {}['missing']": "KeyError.*wrong.py:11",
    "def __init__(self, *a): raise TypeError('boom')": "cannot be built.*boom",
    "def prepare_model(self, model): return None": "returns a NoneType; return the network",
    "def loss(self, model, batch, x_adv, progress): return None": (
        r"\(self, model, batch, x_adv, progress\); define loss\(self, step\), where step has model, batch, x_adv, epoch"
    ),
    "def end_step(self, model, batch, terms): pass": r"define end_step\(self, step, terms\), where step has",
    "def begin_epoch(self): pass": r"defines begin_epoch\(self\); define begin_epoch\(self, epoch\)$",
    "def deployed(self, model): return model": r"deployed\(\), which is no longer called; build what it adds",
    "def radius_scale(self, batch, progress): return None": "no longer called; override attack",
    "def state_dict(self): return {'f': lambda: 1}": "cannot be saved",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_method_that_breaks_its_contract_is_told_before_anything_is_written(wrong, tmp_path):
    (tmp_path / "wrong.py").write_text(RIGHT + f"class Wrong(Right):\n    {wrong}\n")
    done = ltat("train", "--method", f"{tmp_path}/wrong.py:Wrong", *TINY, "--out", tmp_path / "run")
    assert done.exit_code == 2, done.output
    assert re.search(WRONG[wrong], " ".join(done.output.split()))
    assert not (tmp_path / "run").exists()


def test_a_section_of_another_meaning_is_refused(tmp_path):
    (tmp_path / "own.py").write_text(
        "from ltat.config import RunConfig, Section\nfrom ltat.methods import Method\n"
        "class Own(Section):\n    strength: float = 1.0\n"
        "class Settings(RunConfig):\n    awp: Own = Own()\nclass Mine(Method):\n    Config = Settings\n"
    )
    with pytest.raises(LtatError, match="section 'awp'"):
        find_method(f"{tmp_path}/own.py:Mine")


def test_a_file_that_exits_is_told(tmp_path):
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(LtatError, match="SystemExit"):
        find_method(f"{tmp_path}/leaves.py:Mine")


def test_a_section_under_its_former_name_is_refused_and_not_ignored(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ltat.config import RunConfig, ScheduleSection\n"
        "from ltat.methods import Method\n"
        "class Settings(RunConfig):\n"
        "    lr: ScheduleSection = ScheduleSection(kind='cosine')\n"
        "class Mine(Method):\n"
        "    Config = Settings\n"
    )
    with pytest.raises(LtatError, match="section 'lr', which is now 'schedule'; rename it"):
        find_method(f"{file}:Mine")


def test_a_file_with_a_setting_that_is_not_there_is_one_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from ltat.config import AttackSection\nAttackSection(step=0.1)\n")
    with pytest.raises(LtatError, match="cannot be imported") as caught:
        find_method(f"{file}:Mine")
    assert "\n" not in str(caught.value)


def test_settings_without_a_docstring_are_shown_without_empty_comments(focus):
    result = ltat("train", "--method", f"{focus}:Focus", "--show-config")
    assert "\n[focus]\npower = 1.0\n" in result.output
