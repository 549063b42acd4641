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
from typing import Any

from prefanno.snapshot import Manifest

FORMAT = "sharegpt"  # of the data that the recipe reads
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


def stages(manifest: Manifest) -> list[dict[str, Any]]:
    """SFT on the roleplay set if it has rows, then SimPO on the preference set if it has rows."""
    methods = {"roleplay": "sft", "preference": "simpo"}
    files = {dataset: f"{manifest.character}_{dataset}.json" for dataset in methods}
    return [
        {"method": method, "file": f"data/{files[dataset]}", **DEFAULTS[method]}
        for dataset, method in methods.items()
        if manifest.files[files[dataset]].rows
    ]
