"""Balanced softmax + distillation, forward and backward. Run: python -m bench.balanced_kd."""

import click
import torch

from bench._harness import append, compare
from ltat.ops import balanced_kd, balanced_kd_twin

SHAPES = [(128, 10), (128, 100), (256, 200), (256, 1000)]
LARGE = (65536, 1000)
LOGITS = ("student_adv", "student_minus", "teacher_adv", "teacher_minus")


def bench_case(shape: tuple[int, int], form: str, device: torch.device) -> None:
    logits = {name: torch.randn(shape, device=device) for name in LOGITS}
    logits |= {name: logits[name].requires_grad_() for name in ("student_adv", "student_minus")}
    leaves = [logits["student_adv"]] + ([logits["student_minus"]] if "igdm" in form else [])
    target = torch.randint(shape[1], shape[:1], device=device)
    prior = torch.linspace(8, 4, shape[1], device=device)
    compiled = torch.compile(lambda: balanced_kd_twin(**logits, target=target, log_prior=prior, form=form).loss)

    def step(loss):
        return lambda: torch.autograd.grad(loss(), leaves)

    candidates = {
        "eager": step(lambda: balanced_kd_twin(**logits, target=target, log_prior=prior, form=form).loss),
        "compile": step(compiled),
        "native": step(lambda: balanced_kd(**logits, target=target, log_prior=prior, form=form).loss),
    }
    append("balanced_kd", f"{shape[0]}x{shape[1]} {form} float32 fwd+bwd", device, compare(candidates, device))


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def main(device: str, threads: int) -> None:
    """Append the medians to bench/results/balanced_kd.csv."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for shape in [*SHAPES, LARGE] if device == "cuda" else SHAPES:
        for form in ("igdm", "kl_adv"):
            bench_case(shape, form, torch.device(device))


if __name__ == "__main__":
    main()
