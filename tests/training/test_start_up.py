"""What a run imports before its first step: some packages take longer to import than torch itself."""

import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
from ltat.training import train
from tests.training.tiny import tiny_config
train(tiny_config("method=at-bsl", "train.epochs=1"), Path(sys.argv[1]))
print("imported", sorted({"torch._dynamo", "torch._inductor", "sympy", "sklearn", "scipy"} & set(sys.modules)))
"""


def test_a_run_on_digits_imports_neither_torchs_compiler_nor_scikit_learn(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    assert said.splitlines()[-1] == "imported []"
