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
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    from prefanno.training.recipe.base import dtype

    told = json.loads(Path(path).read_text())
    stage, ended = told["stage"], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_given: Any, **_named: Any) -> None:
            ended.append(time.monotonic())

    lora = {"r": told["lora"]["r"], "lora_alpha": told["lora"]["alpha"]}
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
        callbacks=[Clock()],
    )
    started = time.monotonic()
    trainer.train()
    trainer.save_model("adapter")
    seconds = [after - before for before, after in zip([started, *ended], ended, strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    loss = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    Path("bare_metrics.json").write_text(json.dumps({"seconds": seconds, "memory_mb": peak, "loss": loss}))


if __name__ == "__main__":
    main(sys.argv[1])
