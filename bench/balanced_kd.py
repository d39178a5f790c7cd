"""Balanced softmax + distillation, forward and backward. Run: python -m bench.balanced_kd.

`eager` is the loss as training scripts write it, with torch's own losses, `twin` our specification; `compile` runs the
twin, which compiled is the quicker of the two at many classes. On CUDA `… graph` is the replay of a captured
forward and backward.
"""

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from bench._harness import Run, append, bench_options, best_compiled, compare_operations, graphed, tried
from ltat.ops import balanced_kd, balanced_kd_twin

SHAPES = [(128, 10), (128, 100), (256, 200), (256, 1000)]
LARGE = (65536, 1000)
LOGITS = ("student_adv", "student_minus", "teacher_adv", "teacher_minus")


def eager(form: str, target: Tensor, log_prior: Tensor, **logits: Tensor) -> Tensor:
    """The loss as training scripts write it."""
    student, teacher = logits["student_adv"], logits["teacher_adv"]
    loss = F.cross_entropy(student + log_prior, target)
    if form == "igdm":
        student, teacher = student - logits["student_minus"], teacher - logits["teacher_minus"]
    return loss + F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")


def bench_case(shape: tuple[int, int], form: str, device: torch.device, rounds: int) -> None:
    logits = {name: torch.randn(shape, device=device) for name in LOGITS}
    logits |= {name: logits[name].requires_grad_() for name in ("student_adv", "student_minus")}
    leaves = [logits["student_adv"]] + ([logits["student_minus"]] if "igdm" in form else [])
    target = torch.randint(shape[1], shape[:1], device=device)
    prior = torch.linspace(8, 4, shape[1], device=device)
    given = {**logits, "target": target, "log_prior": prior, "form": form}

    def step(loss) -> Run:
        return lambda: torch.autograd.grad(loss(), leaves)

    candidates = {
        "eager": step(lambda: eager(**given)),
        "twin": step(lambda: balanced_kd_twin(**given).loss),
        "native": step(lambda: balanced_kd(**given).loss),
    }

    def compiled(compile) -> Run:
        return step(compile(lambda: balanced_kd_twin(**given).loss))

    candidates |= tried("compile", lambda: best_compiled(compiled, device, comparison=compare_operations))
    if device.type == "cuda":
        candidates |= tried("eager graph", lambda: graphed(candidates["eager"]))
        candidates["native graph"] = graphed(candidates["native"])
    case = f"{shape[0]}x{shape[1]} {form} float32 fwd+bwd"
    append("balanced_kd", case, device, compare_operations(candidates, device, rounds))


@click.command()
@bench_options(threads=1, keep_memory=True)
def main(device: torch.device, rounds: int) -> None:
    """Balanced softmax and distillation, forward and backward."""
    for shape in [*SHAPES, LARGE] if device.type == "cuda" else SHAPES:
        for form in ("igdm", "kl_adv"):
            bench_case(shape, form, device, rounds)


if __name__ == "__main__":
    main()
