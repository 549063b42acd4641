"""What a run is told: the `config.json` in its folder, which is all that train.sh and the recipe read.

Defaults, each with its source:

- LoRA rank 16 on all linear layers, alpha twice the rank: QLoRA (arXiv:2305.14314) finds that adapting all linear
  layers matters more
  than the rank.
- SimPO (arXiv:2405.14734): beta 2.0, gamma/beta 0.5 as in the paper's table of hyperparameters for base models. Its
  learning rates (3e-7
  to 1e-6) are for full fine-tuning of 7B models on 60,000 pairs; LoRA on tens of pairs needs far more.
- `nll_weight` 1.0: pure SimPO collapses on small sets (SimPO issues 12, 42 and 80); the NLL of the chosen reply is
  the usual cure, as in
  CPO (arXiv:2401.08417), whose weight is 1.
- Epochs and learning rate: measured with `benchmarks/taste.py`, see docs/benchmarks.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

LORA = {"r": 16, "alpha": 32, "dropout": 0.0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "sft": {"learning_rate": 3e-4, "epochs": 4, "batch_size": 4},
    "simpo": {"learning_rate": 3e-4, "epochs": 4, "batch_size": 4, "beta": 2.0, "gamma": 1.0, "nll_weight": 1.0},
}
MAX_LENGTH = 2048  # tokens of prompt and reply; longer rows are left out and counted, never cut


@dataclass(frozen=True)
class RunConfig:
    """`base_model` is the setting, `base_model_path` what can be loaded; `stages` run in order on one adapter."""

    character: str
    base_model: str
    base_model_path: str
    adapter: str
    stages: list[dict[str, Any]]
    lora: dict[str, Any]
    max_length: int = MAX_LENGTH
    seed: int = 0


def stages(exported: dict[Path, int]) -> list[dict[str, Any]]:
    """SFT on the roleplay set if it has rows, then SimPO on the preference set if it has rows.

    `exported` maps each exported file to its number of rows.
    """
    methods = {"roleplay": "sft", "preference": "simpo"}
    found = {path.stem.rpartition("_")[2]: path for path, rows in exported.items() if rows}
    return [
        {"method": method, "file": f"data/{found[dataset].name}", **DEFAULTS[method]}
        for dataset, method in methods.items()
        if dataset in found
    ]
