"""Starting several ranks on this machine."""

import os
import subprocess
import sys


def torchrun(ranks: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a module on several ranks of one thread each, on a free port."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*launch, *command], capture_output=True, text=True, timeout=600, check=False, env=one_thread)
