"""SimPO as a script of TRL's own parts: what `benchmarks/training.py` compares with.

python -m benchmarks.bare_trl bare.json
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main(path: str) -> None:
    """Train on the rows of the file, in their order; write bare_metrics.json."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from prefanno.training.recipe.base import dtype

    told = json.loads(Path(path).read_text())
    stage = told["stage"]
    lora = {"r": told["lora"]["r"], "lora_alpha": told["lora"]["alpha"]}
    watch = stopwatch()
    trainer = CPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(told["model"], dtype=dtype()),
        args=CPOConfig(
            output_dir="checkpoints",
            loss_type="simpo",
            beta=stage["beta"],
            simpo_gamma=stage["gamma"],
            cpo_alpha=stage["nll_weight"],
            learning_rate=stage["learning_rate"],
            num_train_epochs=1,
            per_device_train_batch_size=stage["batch_size"],
            max_length=told["max_length"],
            lr_scheduler_type="cosine",
            warmup_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            bf16=False,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
        ),
        train_dataset=Dataset.from_list(told["rows"]),
        processing_class=AutoTokenizer.from_pretrained(told["model"]),
        peft_config=LoraConfig(**lora, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[watch],
    )
    trainer.train()
    trainer.save_model("adapter")
    watch.write()


def stopwatch() -> Any:
    """A callback of transformers' that writes bare_metrics.json: seconds of each step, first loss, peak memory."""
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        def __init__(self) -> None:
            self._times: list[float] = []
            self._losses: list[float] = []

        def on_train_begin(self, *_given: Any, **_named: Any) -> None:
            self._times.append(time.monotonic())

        def on_step_end(self, *_given: Any, **_named: Any) -> None:
            self._times.append(time.monotonic())

        def on_log(self, *_given: Any, **named: Any) -> None:
            self._losses += [named["logs"]["loss"]] if "loss" in named["logs"] else []

        def write(self) -> None:
            seconds = [after - before for before, after in zip(self._times, self._times[1:], strict=False)]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            told = {"seconds": seconds, "memory_mb": peak, "loss": self._losses[0]}
            Path("bare_metrics.json").write_text(json.dumps(told))

    return Stopwatch()


if __name__ == "__main__":
    main(sys.argv[1])
