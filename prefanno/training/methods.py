"""The methods of training: what each learns from, and its hyperparameters with default, bounds and source.

One table for the API that validates a request, the recipe that trains, and docs/training.md, which a test compares.
Where a default is "measured", `benchmarks/` measured it; see docs/benchmarks.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DATASETS = ("roleplay", "preference", "unpaired")
MEASURED = "measured, see benchmarks.md"
DPO_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
)
SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")  # TRL's other losses do not read label_smoothing
COMPARED = ("kto", "aot", "aot_unpaired")  # the replies of a batch with each other


@dataclass(frozen=True)
class Hyperparameter:
    """A number from `low` to `high`, both included, whole where the default is; or one of the `choices`."""

    default: Any
    source: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """`datasets` are those it can learn from, the usual one first; `pairs` says that it needs both sides of a choice.

    `reference` is the model that the loss compares with; None where the loss has none.
    """

    datasets: tuple[str, ...]
    pairs: bool
    reference: str | None
    own: Mapping[str, Hyperparameter]
    learning_rate: float
    epochs: float

    @property
    def hyperparameters(self) -> dict[str, Hyperparameter]:
        """All of them, those that every method has first."""
        return {
            "learning_rate": Hyperparameter(self.learning_rate, MEASURED, 1e-7, 1e-2),
            "epochs": Hyperparameter(self.epochs, MEASURED, 0.1, 50.0),
            "batch_size": Hyperparameter(4, "what a small machine takes", 1, 64),
            "accumulation": Hyperparameter(1, "batches to a step; 1: a step after each", 1, 256),
            **self.own,
        }

    @property
    def defaults(self) -> dict[str, Any]:
        """What a stage has that names nothing."""
        return {name: one.default for name, one in self.hyperparameters.items()}


STAGE_START = "the model as it is when the stage begins"
NLL_WEIGHT = Hyperparameter(
    1.0, "CPO, arXiv:2401.08417, whose weight is 1: without it small sets break the text", 0.0, 10.0
)
METHODS: Mapping[str, Method] = {
    "sft": Method(
        ("roleplay", "preference", "unpaired"), pairs=False, reference=None, own={}, learning_rate=3e-4, epochs=4.0
    ),
    "simpo": Method(
        ("preference",),
        pairs=True,
        reference=None,
        own={
            "beta": Hyperparameter(2.0, "SimPO, arXiv:2405.14734, for base models", 0.01, 20.0),
            "gamma": Hyperparameter(1.0, "SimPO: half of beta", 0.0, 20.0),
            "nll_weight": NLL_WEIGHT,
        },
        learning_rate=3e-4,
        epochs=6.0,
    ),
    "dpo": Method(
        ("preference",),
        pairs=True,
        reference=STAGE_START,
        own={
            "beta": Hyperparameter(0.1, "DPO, arXiv:2305.18290, and TRL", 0.001, 10.0),
            "loss": Hyperparameter("sigmoid", "DPO; the others are TRL's loss types", choices=DPO_LOSSES),
            "label_smoothing": Hyperparameter(0.0, "TRL; exo_pair needs more than 0", 0.0, 0.49),
            "nll_weight": Hyperparameter(1.0, "RPO, arXiv:2404.19733, whose weight is 1", 0.0, 10.0),
        },
        learning_rate=3e-4,
        epochs=4.0,
    ),
    "orpo": Method(
        ("preference",),
        pairs=True,
        reference=None,
        own={"beta": Hyperparameter(0.1, "ORPO, arXiv:2403.07691 (there: lambda)", 0.001, 10.0)},
        learning_rate=3e-4,
        epochs=4.0,
    ),
    "kto": Method(
        ("unpaired", "preference"),
        pairs=False,
        reference=STAGE_START,
        own={
            "beta": Hyperparameter(0.1, "KTO, arXiv:2402.01306, and TRL", 0.001, 10.0),
            "loss": Hyperparameter(
                "kto", "KTO; apo_zero_unpaired is TRL's other", choices=("kto", "apo_zero_unpaired")
            ),
            "desirable_weight": Hyperparameter(1.0, "KTO: 1 where both sides are as many", 0.0, 100.0),
            "undesirable_weight": Hyperparameter(1.0, "KTO: 1 where both sides are as many", 0.0, 100.0),
        },
        learning_rate=3e-4,
        epochs=4.0,
    ),
}


def conflict(method: str, given: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The hyperparameter that does not go with the others, and why, in English and in Chinese; None where all do."""
    whole = {**METHODS[method].defaults, **given}
    if whole.get("loss") == "exo_pair" and not whole["label_smoothing"]:
        return "label_smoothing", "label_smoothing must be above 0 with loss=exo_pair", "loss 为 exo_pair 时必须大于 0"
    if whole.get("label_smoothing") and whole["loss"] not in SMOOTHED:
        losses = ", ".join(SMOOTHED)
        return "label_smoothing", f"label_smoothing goes with loss={losses} only", f"仅用于 loss 为 {losses} 时"
    if whole.get("loss") in COMPARED and whole["batch_size"] == 1:
        loss = whole["loss"]
        return "batch_size", f"batch_size must be above 1 with loss={loss}", f"loss 为 {loss} 时必须大于 1"
    if method == "kto" and not whole["desirable_weight"] and not whole["undesirable_weight"]:
        return "undesirable_weight", "one of the two weights must be above 0", "两个权重不能同时为 0"
    return None


def fault(method: str, name: str, value: Any) -> tuple[str, str] | None:
    """Why this cannot be a hyperparameter of the method, in English and in Chinese; None where it can."""
    known = METHODS[method].hyperparameters
    if name not in known:
        return (
            f"{method} has no hyperparameter {name}; it has: {', '.join(known)}",
            f"{method} 没有这个超参数，可用：{'、'.join(known)}",
        )
    one = known[name]
    if one.choices:
        listed = ", ".join(one.choices)
        return None if value in one.choices else (f"{name} must be one of: {listed}", f"必须是以下之一：{listed}")
    if isinstance(one.default, int) and not isinstance(value, int):
        return f"{name} must be a whole number", "必须是整数"
    if isinstance(value, int | float) and one.low <= value <= one.high:
        return None
    return f"{name} must be from {one.low:g} to {one.high:g}", f"必须在 {one.low:g} 到 {one.high:g} 之间"
