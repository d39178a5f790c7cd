"""What is recorded: tiny runs, by the command line and the documented Python functions alone.

The names of options and settings here are those of the oldest checkout that is compared; a newer one still takes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Command = tuple[str, ...]

HERE = Path(__file__).resolve().parent
TAUGHT = ("self-distill", "ard", "rslad", "adaad", "ard+igdm", "rslad+igdm", "adaad+igdm")
METHODS = (
    *("natural", "pgd-at", "trades", "mart", "at-bsl", "robal", "reat", "taet", "faal", "dafa"),
    *TAUGHT,
)
TEACHER = "teacher.train=balanced teacher.epochs=1"
SHORT = "attack.steps=2 eval.attacks=clean,pgd3 eval.n_examples=100 select.metric=pgd2"

OPTIONS = {
    "awp": ("at-bsl", "awp.gamma=0.01 awp.warmup=1"),
    "awp-trades": ("trades", "awp.gamma=0.01 trades.third_forward=true"),
    "awp-self-distill": ("self-distill", "awp.gamma=0.01"),
    "radius": ("at-bsl", "radius.alpha=0.3 radius.ramp=0.5"),
    "radius-dafa": ("dafa", "radius.alpha=0.4 dafa.scale=2 dafa.floor=0.2 dafa.warmup=0.5"),
    "radius-taught": ("self-distill", "radius.alpha=0.3"),
    "ema": ("at-bsl", "average.kind=ema average.decay=0.9"),
    "ema-copy": ("at-bsl", "average.kind=ema average.decay=0.9 average.bn=copy average.start=2"),
    "swa-recompute": ("trades", "average.kind=swa average.bn=recompute train.epochs=3 average.start=0.5"),
    "ema-robal": ("robal", "average.kind=ema average.decay=0.8"),
    "loss-ce": ("at-bsl", "loss.cls=ce"),
    "loss-bsl-tau": ("pgd-at", "loss.cls=bsl bsl.tau=1.5"),
    "loss-ldam-drw": ("pgd-at", "loss.cls=ldam-drw loss.drw=0.5 loss.scale=20 loss.margin=0.4"),
    "loss-cb": ("pgd-at", "loss.cls=cb loss.beta=0.99"),
    "loss-focal": ("pgd-at", "loss.cls=focal loss.gamma=1.5"),
    "loss-focal-self-distill": ("self-distill", "loss.cls=focal"),
    "loss-ldam-reat": ("reat", "loss.cls=ldam-drw"),
    "init-teacher": ("self-distill", "student.init=teacher"),
    "teacher-modes": ("self-distill", "teacher.mode=train teacher.ckpt=best teacher.aug=none teacher.precision=fp32"),
    "teacher-length": ("self-distill", "teacher.epochs=2 teacher.batch_size=16 teacher.base_lr=0.05"),
    "teacher-mode-adaad": ("adaad", "teacher.mode=train"),
    "kd-adv": ("self-distill", "kd.form=kl_adv kd.alpha=0.5 kd.mix=convex kd.ramp=none kd.temp=2"),
    "kd-clean": ("self-distill", "kd.form=kl_clean kd.reduction=elementmean kd.on_biased=true"),
    "kd-both": ("self-distill", "kd.form=kl_adv+igdm kd.bn=concat kd.clamp_minus=true kd.ramp_len=2"),
    "kd-freeze": ("self-distill", "kd.bn=freeze_minus bsl.tau=0.5 kd.alpha=3"),
    "kd-bf16-fp32-teacher": ("self-distill", "train.precision=bf16 teacher.precision=fp32"),
    "igdm-ramp": ("ard+igdm", "igdm.alpha=3 igdm.ramp=none igdm.bn=concat igdm.clamp_minus=true igdm.temp=2"),
    "igdm-forwards": ("adaad+igdm", "kd.extra_forwards=true kd.clean_forward=true kd.swap_step_eps=true"),
    "igdm-rslad": ("rslad+igdm", "igdm.bn=freeze_minus igdm.reduction=elementmean igdm.ramp_len=2 kd.guard=0"),
    "ard-weights": ("ard", "kd.alpha=0.7 kd.temp=5 kd.clean_forward=false kd.reduction=sum"),
    "adaad-weights": ("adaad", "kd.alpha=0.6 kd.clean_forward=false kd.swap_step_eps=true"),
    "clean-forward": ("pgd-at", "pgd_at.clean_forward=true attack.mode=train attack.final_forward=true"),
    "mode-frozen": ("at-bsl", "attack.mode=train_frozen_stats attack.start=uniform_clamp"),
    "mode-train-kl": ("trades", "attack.mode=train attack.start=uniform_clamp"),
    "attack-bsl": ("pgd-at", "attack.loss=bsl attack.start=pos_uniform"),
    "attack-kl": ("at-bsl", "attack.loss=kl-self attack.start=uniform"),
    "attack-zero": ("at-bsl", "attack.start=zero"),
    "attack-l2": ("at-bsl", "attack.norm=l2 attack.eps=0.5 attack.step=0.2 attack.start=uniform"),
    "fold-bf16-off": ("at-bsl", "attack.fold=false train.precision=bf16"),
    "fp16": ("at-bsl", "train.precision=fp16"),
    "fp16-self-distill": ("self-distill", "train.precision=fp16"),
    "no-graph": ("self-distill", "train.graph=false train.deterministic=true"),
    "mart-guards": ("mart", "mart.beta=2 mart.margin_guard=1e-3 mart.log_guard=1e-6 mart.weight_guard=1e-3"),
    "robal-forwards": ("robal", "robal.extra_forwards=false robal.tau_p=0.5 robal.scale_out=2 robal.gamma_w=0.0625"),
    "reat-code": ("reat", "reat.tail_impl=per_pair reat.tail_sign=intended reat.tail_set=count reat.tail=0.5"),
    "taet-absent": ("taet", "taet.absent=ignore taet.clean_extra_forward=true taet.extra_forward=false"),
    "faal-gain": ("faal", "faal.gain=classes faal.extra_forward=true faal.radius=0.1"),
    "sampling-balanced": ("pgd-at", "data.sampling=balanced db.gamma=2 db.resample=per_epoch db.remainder=replace"),
    "sampling-progressive": ("at-bsl", "data.sampling=progressive data.imbalance=step data.class_order=permuted"),
    "sampling-square-root": ("at-bsl", "data.sampling=square_root seed.subset=3 seed.train=5"),
    "partial-teacher": ("self-distill", "db.partial=0.5 db.gamma=3 seed.db=4"),
    "loader-torch": ("at-bsl", "loader.kind=torch loader.workers=0"),
    "loader-workers": ("at-bsl", "loader.kind=torch loader.workers=1"),
    "loader-resident": ("at-bsl", "loader.kind=resident aug.pad=1 aug.flip=true aug.cutout=2"),
    "augment-policy": (
        "pgd-at",
        "aug.policy=randaugment aug.ra_ops=1 aug.ra_magnitude=5 aug.pad_mode=reflect aug.pad=2",
    ),
    "optimiser": ("at-bsl", "optim.nesterov=true optim.wd_skip_bn=true optim.momentum=0.8 train.drop_last=false"),
    "rate-cosine": ("at-bsl", "lr.kind=cosine lr.warmup=1 train.epochs=3"),
    "rate-compounding": ("at-bsl", "lr.kind=compounding lr.milestones=[1,2] lr.milestone_base=0 train.epochs=3"),
    "rate-constant": ("natural", "lr.kind=constant"),
    "select-test": ("at-bsl", "select.set=test select.every=2 select.from=2"),
    "select-none": ("self-distill", "select.set=none"),
    "select-holdout": ("at-bsl", "select.holdout=0.2 select.metric=clean"),
    "tau": ("pgd-at", "eval.tau=1 model.normalize=train"),
    "eval-attacks": ("at-bsl", "eval.attacks=clean,pgd3@1/255,cw3,lsa3,tenfold3 eval.batch_size=33"),
}
"""Bundles of settings by name: a method, and what is set."""

RECIPES = (
    *(f"{name}/faithful" for name in (*TAUGHT[1:], "at-bsl", "awp", "dafa", "faal", "mart", "reat", "trades")),
    *("trades/awp", "pgd-at/rice", "robal/faithful-c10-n", "robal/faithful-c100-r", "taet/faithful-ir10"),
    *("taet/faithful-dermamnist", "demo/digits-self-distill", "ltat-sd/c100-ir10-rn18/self-distill"),
    *(f"ltat-sd/c100-ir10-rn18/{name}" for name in ("balanced-teacher", "robal", "reat", "awp", "mart")),
)
"""Published settings that are run on digits; the settings of all recipes are recorded without a run."""

SHORTER = {"dafa/faithful": "dafa.warmup=0.5", "trades/awp": "awp.warmup=1", "awp/faithful": "awp.warmup=0"}
"""What of a recipe does not fit into two epochs."""

RESUMED = {
    "at-bsl": "average.kind=ema average.decay=0.9",
    "self-distill": "",
    "dafa": "",
    "reat": "",
    "mart": "train.precision=fp16",
}
"""Methods and settings of the runs that are interrupted and resumed."""

SMALLEST = "data.imbalance_ratio=100 attack.steps=1 select.set=none eval.attacks=clean eval.n_examples=20"
ARCHITECTURES = ("resnet18", "preactresnet18", "mobilenetv2")
EVALUATE = ("eval", "run/last.safetensors", "--device", "cpu", "--json", "eval.json")
FEW = ("--attacks", "clean,pgd3", "--n-examples", "100")


@dataclass(frozen=True)
class Case:
    """Commands that are run in one folder; what they leave there is recorded.

    Attributes:
        name: also in reports.
        commands: each the arguments of ``ltat``, or ``interrupt LINES ARGUMENTS`` for one that is interrupted when its
            metrics have so many lines, or ``python FILE ARGUMENTS``.
        again: more commands, which a later version must be able to run on what ``commands`` left.
    """

    name: str
    commands: tuple[Command, ...]
    again: tuple[Command, ...] = ()


def settings(text: str) -> Command:
    """``a=1 b=2`` as ``--set a=1 --set b=2``."""
    return tuple(word for each in text.split() for word in ("--set", each))


def train(recipe: str, *options: str) -> Command:
    return ("train", "--recipe", recipe, "--out", "run", "--device", "cpu", *options)


def on_digits(method: str, given: str = "", epochs: int = 2) -> Command:
    teacher = TEACHER if method in TAUGHT else ""
    options = settings(f"select.set=val {SHORT} {teacher} {given}")
    return train("unified/digits", "--method", method, "--epochs", str(epochs), *options)


def published(recipe: str) -> Command:
    """A recipe on digits, with the small network and few steps."""
    place = ("--dataset", "digits", "--imbalance-ratio", "20", "--model", "small")
    taught = recipe.partition("/")[0] in TAUGHT or "self-distill" in recipe
    options = settings(f"{SHORT} select.from=1 {TEACHER if taught else ''} {SHORTER.get(recipe, '')}")
    return train(recipe, *place, "--epochs", "2", "--batch-size", "64", *options)


def all_cases(recipes: list[str]) -> list[Case]:
    """Every case; ``recipes`` are the names that the checkout lists."""
    return [*trained(), *resumed(), *evaluated(), *resolved(recipes)]


def trained() -> Iterator[Case]:
    for method in METHODS:
        yield Case(f"{method}-fp32", (on_digits(method),), ((*EVALUATE, *FEW),))
        yield Case(f"{method}-bf16", (on_digits(method, "train.precision=bf16"),))
    for name, (method, given) in OPTIONS.items():
        yield Case(f"option-{name}", (on_digits(method, given),))
    for recipe in RECIPES:
        yield Case(f"recipe-{recipe}", (published(recipe),))
    for name in ARCHITECTURES:
        yield Case(f"model-{name}", (on_digits("at-bsl", f"model.name={name} {SMALLEST}", epochs=1),))
    start = settings("model.weights=first/last.safetensors model.normalize=train")
    first = on_digits("natural", "model.normalize=train")
    yield Case("warm-start", (renamed(first, "first"), (*on_digits("at-bsl"), *start)))
    teacher = ("--teacher", "first/last.safetensors")
    plain = train("unified/digits", "--method", "ard", "--epochs", "2", *settings(SHORT))
    yield Case("given-teacher", (renamed(on_digits("pgd-at"), "first"), (*plain, *teacher)))
    method = ("--method", f"{HERE / 'user_method.py'}:Focus")
    yield Case("user-method", ((*on_digits("natural"), *method, *settings("attack.steps=2 focus.power=2")),))
    compare = ("compare", "--methods", "at-bsl,trades", "--seeds", "2", "--epochs", "1", "--out", "run")
    yield Case("compare", ((*compare, "--json", "compare.json", *settings("attack.steps=2 eval.n_examples=100")),))


def renamed(command: Command, folder: str) -> Command:
    """The same training into another folder."""
    return tuple(folder if word == "run" else word for word in command)


def resumed() -> Iterator[Case]:
    go_on = ("train", "--resume", "--out", "run")
    for method, given in RESUMED.items():
        lines = "2" if method in TAUGHT else "1"
        yield Case(
            f"resume-{method}",
            (("interrupt", lines, *on_digits(method, given, epochs=4)),),
            (go_on, (*EVALUATE, *FEW)),
        )


def evaluated() -> Iterator[Case]:
    attacks = ("--attacks", "clean,pgd3,cw3,lsa3,tenfold3,pgd3@1/255")
    variants = {
        "attacks": (*attacks, "--n-examples", "60", "--batch-size", "32"),
        "autoattack": ("--attacks", "clean,autoattack", "--n-examples", "10", "--state-dir", "state"),
        "adjust": (*FEW, "--adjust", "1.5"),
        "bf16": (*FEW, "--precision", "bf16", "--seed", "3"),
        "l2": (*FEW, "--norm", "l2", "--eps", "0.5"),
        "eps": (*FEW, "--eps", "8/255"),
    }
    for name, options in variants.items():
        yield Case(f"eval-{name}", (on_digits("at-bsl"),), ((*EVALUATE, *options),))
    yield Case("eval-ldam", (on_digits("pgd-at", "loss.cls=ldam-drw"),), ((*EVALUATE, *FEW),))
    yield Case("eval-tau", (on_digits("natural", "eval.tau=1"),), ((*EVALUATE, *FEW),))
    yield Case("python-variants", (on_digits("at-bsl"),), (("python", str(HERE / "attack_script.py")),))


def resolved(recipes: list[str]) -> Iterator[Case]:
    """The settings of every method and recipe; nothing is trained."""
    for method in METHODS:
        yield Case(f"settings-{method}", (("train", "--method", method, "--show-config"),))
    for recipe in recipes:
        teacher = settings("teacher.train=balanced") if recipe.partition("/")[0] in TAUGHT else ()
        yield Case(f"settings-{recipe}", (("train", "--recipe", recipe, *teacher, "--show-config"),))
