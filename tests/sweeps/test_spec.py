"""The file of a sweep: the runs it describes, and what it refuses."""

import re
from pathlib import Path

import pytest

from ltat.errors import LtatError
from ltat.sweeps import share_teachers
from ltat.sweeps.spec import load_sweep
from tests.sweeps.runs import BREAKING

DOCS = Path(__file__).parents[2] / "docs/sweeps.md"
GRID = '[grid]\nmethod = ["at-bsl", "pgd-at"]\nseed.train = [0, 1]\n'


def load(folder: Path, text: str, **options):
    (folder / "spec.toml").write_text(text)
    return load_sweep(folder / "spec.toml", **options)


def test_the_documented_file_describes_its_runs(tmp_path: Path):
    text = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]
    sweep = load(tmp_path, text)
    names = [plan.name for plan in sweep.plans]
    assert len(names) == 6 + 12 and names[:3] == ["at-bsl-s0", "at-bsl-s1", "at-bsl-s2"]
    assert names[-1] == "self-distill-kd.alpha=1-attack=eps=4:255,step_size=1:255-s2"
    assert sweep.plans[-1].row == "self-distill kd.alpha=1 attack=eps=4/255,step_size=1/255"
    assert [plan.asked().config.train.epochs for plan in (sweep.plans[0], sweep.plans[-1])] == [40, 60]
    assert sweep.plans[-1].asked().config.attack.eps == 4 / 255
    assert sweep.remarks == ["teacher.train is left out for at-bsl, which lacks it"]
    shared = share_teachers(sweep.plans, sweep.out)
    assert all(plan.teacher is None for plan in shared[:6])  # each trains its own: no other run has it
    assert len({plan.teacher.name for plan in shared[6:]}) == 6  # a teacher for each seed and attack, for two students


def test_every_combination_is_a_run_and_its_row_has_no_seed(tmp_path: Path):
    sweep = load(
        tmp_path, 'out = "o"\n[grid]\nmethod = ["at-bsl"]\noptim.lr = [0.1, 0.01]\nseed.train = [3]\nseed.db = [1, 2]\n'
    )
    assert [(plan.name, plan.row) for plan in sweep.plans][1:3] == [
        ("at-bsl-optim.lr=0.1-s3-seed.db=2", "at-bsl optim.lr=0.1"),
        ("at-bsl-optim.lr=0.01-s3-seed.db=1", "at-bsl optim.lr=0.01"),
    ]
    assert {plan.folder for plan in sweep.plans} == {Path("o").absolute() / plan.name for plan in sweep.plans}
    seeds = [plan.asked().config.seed for plan in sweep.plans]
    assert [(seed.train, seed.db) for seed in seeds] == [(3, 1), (3, 2)] * 2


def test_an_unusual_value_makes_a_plain_folder(tmp_path: Path):
    (plan,) = load(tmp_path, f'out = "o"\n[grid]\nmethod = ["at-bsl"]\ndata.dir = ["/a b/{"c" * 40}"]\n').plans
    assert re.fullmatch(r"at-bsl-data\.dir=[0-9a-f]{8}", plan.name) and "/a b/" in plan.row


def test_out_of_the_command_replaces_that_of_the_file(tmp_path: Path):
    assert load(tmp_path, f'out = "o"\n{GRID}', out=tmp_path / "p").out == tmp_path / "p"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (f'out = "o"\nrecipes = "x"\n{GRID}', "has an entry 'recipes'; it may have recipe, settings, grid, out, also"),
        (f'out = "o"\n{GRID}[[also]]\nout = "p"\n', r"\[\[also\]\] of .* has an entry 'out'"),
        (f'out = "o"\nalso = 1\n{GRID}', r"also in .* is 1; begin each further group with \[\[also\]\]"),
        (f"out = 1\n{GRID}", "out in .* is 1; write it as text"),
        (f'out = "o"\nrecipe = ["a"]\n{GRID}', "recipe in .* write it as text"),
        (f'out = "o"\nsettings = 1\n{GRID}', r"write it as a table \[settings\]"),
        (GRID, "names no folder for the runs; .* --out"),
        ('out = "o"\n', r"describes no run; give it a \[grid\]"),
        ('out = "o"\n[grid]\nseed.train = []\n', r"seed.train = \[\]; give a list of at least one value"),
        ('out = "o"\n[grid]\nseed.train = 3\n', "seed.train = 3; give a list"),
        ('out = "o"\n[grid]\nmethod = ["at-bsl"]\nseed.train = [1, 1]\n', "two runs of the sweep are called at-bsl-s1"),
        (f'out = "o"\n{GRID}[[also]]\ngrid.method = ["at-bsl"]\ngrid.seed.train = [1]\n', "are called at-bsl-s1"),
        (f'out = "o"\nrecipe = "nosuch"\n{GRID}', "there is no recipe 'nosuch'"),
        ('out = "o"\n[grid]\nmethod = ["nosuch"]\n', "there is no method 'nosuch'"),
        ('out = "o"\n[grid]\nmethod = ["at-bsl"]\nkd.alpha = [1]\n', "has no setting 'kd'"),
        ('out = "o"\n[grid]\nmethod = ["at-bsl"]\ntrain.epochs = [0]\n', "setting train.epochs=0 is not possible"),
        (f'out = "o"\n[settings]\ntrain.epcohs = 1\n{GRID}', "has no setting 'train.epcohs'"),
        (f'out = "o"\n[settings]\nkd.alpha = 1\n{GRID}', "has no setting 'kd'"),
        ('out = "o"\n[grid]\nmethod = [1]\n', "method is 1 in the sweep; write its name in quotes"),
        ("out = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, fragment: str, tmp_path: Path):
    with pytest.raises(LtatError, match=fragment) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_python_file_is_executed_only_when_the_command_names_it(tmp_path: Path):
    method = tmp_path / "breaking.py"
    method.write_text("raise SystemError('executed')")
    text = f'out = "o"\n[grid]\nmethod = ["{method}:Breaking"]\n'
    with pytest.raises(LtatError, match="which would be run; if you trust it: --method"):
        load(tmp_path, text)
    method.write_text(BREAKING)
    (plan,) = load(tmp_path, text, trusted=[f"{method}:Breaking"]).plans
    assert plan.name == "Breaking" and plan.settings["method"] == f"{method}:Breaking"
