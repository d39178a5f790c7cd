"""`ltat doctor`, and every other command, on an installation that lacks something."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pyautoattack
import pytest
import torch
from click.testing import CliRunner

from ltat import installed
from ltat.cli.main import main
from ltat.engine import precision
from ltat.engine.precision import emulated
from ltat.installed import PACKAGES

THIRD_PARTY = ("torch", "torchvision", "numpy", "safetensors", "pyautoattack", "pydantic", "rich", "tomli_w", "sklearn")


def test_doctor_works_without_any_package_but_click():
    block = f"import sys; sys.modules.update(dict.fromkeys({THIRD_PARTY}))"
    code = f"{block}; from ltat.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch cannot be imported" in done.stdout and "native kernels" in done.stdout


def test_doctor_lists_what_the_project_depends_on():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {re.split("[>=]", name)[0] for name in project["dependencies"]} == set(PACKAGES)


def test_what_is_depended_on_has_a_lower_bound_and_the_package_whose_internals_are_used_one_version():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert [name for name in project["dependencies"] if "==" in name] == [f"pyautoattack=={pyautoattack.__version__}"]
    assert all(re.search("[>=]=[0-9]", name) for name in project["dependencies"])


def test_doctor_names_the_command_for_a_missing_package(monkeypatch: pytest.MonkeyPatch):
    version = metadata.version

    def without_rich(name: str) -> str:
        if name == "rich":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_rich)
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0 and "rich is missing: pip install rich" in done.output


def test_doctor_names_the_command_for_what_is_optional_without_calling_it_wrong(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(installed, "_version", lambda name: None if name in ("ffcv", "submitit") else "1")
    output = CliRunner().invoke(main, ["doctor"]).output
    assert '  submitit missing (optional): pip install "ltat[slurm]"\n' in output
    assert "  ffcv missing (optional): python -m ltat.install_ffcv\n" in output
    assert "pip install ffcv" not in output


def test_a_missing_package_is_one_sentence_with_its_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ltat.data.digits.find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["data", "info", "--dataset", "digits"])
    assert done.exit_code == 2 and done.output.count("\n") == 1
    assert "pip install scikit-learn" in done.output


def native_report(monkeypatch: pytest.MonkeyPatch, value: str) -> str:
    from ltat import native

    monkeypatch.setenv("LTAT_NATIVE", value)
    monkeypatch.setattr(native, "_ops_problem", native._ops_problem.__wrapped__)
    monkeypatch.setattr(native, "host", native.host.__wrapped__)
    return CliRunner().invoke(main, ["doctor"]).output


def test_kernels_turned_off_are_turned_on_by_unsetting_the_variable(monkeypatch: pytest.MonkeyPatch):
    output = native_report(monkeypatch, "0")
    assert "fix: unset LTAT_NATIVE" in output and "pip install --no-build" not in output


def test_a_value_that_the_native_switch_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch):
    assert "LTAT_NATIVE='yes'" in native_report(monkeypatch, "yes")


def test_a_processor_without_half_precision_is_told_before_hours_are_lost(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(precision, "has_instructions_for", lambda name: name == "fp32")
    assert "bf16 and fp16 emulated, many times slower" in CliRunner().invoke(main, ["doctor"]).output
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert emulated(cpu, "fp32") == emulated(gpu, "bf16") == []
    (line,) = emulated(cpu, "bf16")
    assert line.startswith("warning: this processor has no bf16 instructions")
    tiny = ["--dataset", "digits", "--model", "small", "--epochs", "1", "--set", "eval.attacks=clean"]
    trained = CliRunner().invoke(
        main, ["train", "--method", "natural", *tiny, "--precision", "bf16", "--out", str(tmp_path / "run")]
    )
    evaluated = CliRunner().invoke(
        main, ["eval", str(tmp_path / "run" / "last"), "--attacks", "clean", "--precision", "bf16", "--n-examples", "9"]
    )
    assert trained.exit_code == evaluated.exit_code == 0
    assert line in trained.stderr and line in evaluated.stderr
