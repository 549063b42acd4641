"""The recipe: one adapter from the choices in a run's folder, by TRL, with LoRA, fresh from the base model.

    python -P -m prefanno.training.recipe config.json          (in the run's folder; train.sh does this)

It reads config.json and the exported files it names, and writes metrics.jsonl and adapter/. Each row is rendered with
its own persona by `prompting.py`, so the model sees in training what it sees when it generates. Rows that would teach
nothing are left out and counted: too long for `max_length` (nothing is ever cut), or with equal chosen and rejected.

It does not touch the database or the server, and does not choose its hyperparameters: config.json holds them all.
"""

import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from prefanno.prompting import ChatTemplate, conversation
from prefanno.rows import Fault, Row, reader
from prefanno.training.config import FORMAT, RunConfig


def main(path: str) -> None:
    """Train all stages, one after the other, on one adapter."""
    warnings.simplefilter("ignore")  # the libraries' deprecations are no news to who reads the log
    config = RunConfig(**json.loads(Path(path).read_text()))
    _say(f"loading {config.base_model}")
    model, tokenizer = _model(config)
    template = ChatTemplate.of(tokenizer)
    trained = 0
    for stage in config.stages:
        rows = _usable(stage, template, config.max_length)
        if rows:
            train = {"sft": _sft, "simpo": _simpo}[stage["method"]]
            train(model, tokenizer, rows, stage, config)
            trained += len(rows)
    if not trained:
        sys.exit("no row is left to train on: every row was left out, see the counts above")
    model.save_pretrained("adapter")
    _say(f"adapter complete: {config.adapter}")


def _model(config: RunConfig) -> tuple[Any, Any]:
    """The base model with a fresh LoRA on top. bfloat16 where the device computes in it, else float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    set_seed(config.seed)
    features = torch.cpu.get_capabilities()
    fast = torch.cuda.is_available() or features.get("avx512_bf16") or features.get("amx_bf16")
    dtype = torch.bfloat16 if fast else torch.float32
    base = AutoModelForCausalLM.from_pretrained(config.base_model_path, dtype=dtype, use_safetensors=True)
    lora = LoraConfig(
        r=config.lora["r"],
        lora_alpha=config.lora["alpha"],
        lora_dropout=config.lora["dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora), AutoTokenizer.from_pretrained(config.base_model_path)


def _usable(stage: dict[str, Any], template: ChatTemplate, max_length: int) -> list[dict[str, str]]:
    """The stage's rows as prompt and replies, without those that would teach nothing; says how many of each."""
    rows, left_out = [], Counter[str]()
    for line, row in reader(FORMAT).reading(Path(stage["file"])):
        if isinstance(row, Fault):
            raise ValueError(f"{stage['file']}, line {line}: {row}")
        texts = _pair(row, template, left_out) if stage["method"] == "simpo" else _single(row, template)
        longest = max(_tokens(template, texts["prompt"] + text) for name, text in texts.items() if name != "prompt")
        if stage["method"] == "simpo" and texts["chosen"] == texts["rejected"]:
            left_out["left out: chosen equals rejected"] += 1
        elif longest > max_length:
            left_out[f"left out: longer than {max_length} tokens"] += 1
        else:
            rows.append(texts)
    _say(f"{stage['method']}: {len(rows)} rows" + "".join(f"; {count} {what}" for what, count in left_out.items()))
    return rows


def _single(row: Row, template: ChatTemplate) -> dict[str, str]:
    assert row.chosen is not None  # noqa: S101 - a roleplay file has a chosen reply in each row
    messages = conversation(row.system_prompt, row.context, row.human_input)
    prompt = template.prompt(messages, thinking=row.chosen_thinking is not None)
    return {"prompt": prompt, "completion": template.completion(row.chosen_thinking, row.chosen)}


def _pair(row: Row, template: ChatTemplate, counts: Counter[str]) -> dict[str, str]:
    """A pair with a thought on one side only is trained without: else the thought itself would be what is preferred."""
    assert row.chosen is not None and row.rejected is not None  # noqa: S101, PT018 - a preference file has both
    thinking = row.chosen_thinking is not None and row.rejected_thinking is not None
    if not thinking and (row.chosen_thinking or row.rejected_thinking):
        counts["trained without thoughts, since one side has none"] += 1
    messages = conversation(row.system_prompt, row.context, row.human_input)
    return {
        "prompt": template.prompt(messages, thinking=thinking),
        "chosen": template.completion(row.chosen_thinking if thinking else None, row.chosen),
        "rejected": template.completion(row.rejected_thinking if thinking else None, row.rejected),
    }


def _tokens(template: ChatTemplate, text: str) -> int:
    return len(template.tokenizer(text, add_special_tokens=False).input_ids)


def _sft(model: Any, tokenizer: Any, rows: list[dict[str, str]], stage: dict[str, Any], config: RunConfig) -> None:
    from trl import SFTConfig, SFTTrainer

    def tokenized(row: dict[str, str]) -> dict[str, list[int]]:
        prompt, completion = (
            tokenizer(row[part], add_special_tokens=False).input_ids for part in ("prompt", "completion")
        )
        return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}

    arguments = SFTConfig(**_arguments(stage, config), completion_only_loss=True, packing=False)
    dataset = _dataset([tokenized(row) for row in rows])
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer)
    _train(trainer, "sft")


def _simpo(model: Any, tokenizer: Any, rows: list[dict[str, str]], stage: dict[str, Any], config: RunConfig) -> None:
    """SimPO with an NLL term. `trl.experimental` may change in any release: this is the only place that imports it."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    arguments = CPOConfig(
        **_arguments(stage, config),
        loss_type="simpo",
        beta=stage["beta"],
        simpo_gamma=stage["gamma"],
        cpo_alpha=stage["nll_weight"],
        remove_unused_columns=False,
    )
    trainer = CPOTrainer(model=model, args=arguments, train_dataset=_dataset(rows), processing_class=tokenizer)
    _train(trainer, "simpo")


def _arguments(stage: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """What every TRL trainer is told."""
    return {
        "output_dir": "checkpoints",
        "learning_rate": stage["learning_rate"],
        "num_train_epochs": stage["epochs"],
        "per_device_train_batch_size": stage["batch_size"],
        "max_length": config.max_length,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,  # the weights are in bfloat16 already; autocast on top costs time on a CPU and gains nothing
        "seed": config.seed,
    }


def _dataset(rows: list[dict[str, Any]]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.Dataset.from_list(rows)


METRICS = {  # TRL's names → ours
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "chosen_logp",
    "logps/rejected": "rejected_logp",
    "nll_loss": "nll",
    "learning_rate": "learning_rate",
}


def _train(trainer: Any, method: str) -> None:
    """Train, with one line in the log and one object in metrics.jsonl for each logging step."""
    from transformers import PrinterCallback, TrainerCallback

    started = time.monotonic()

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            metrics = {METRICS[name]: float(value) for name, value in (logs or {}).items() if name in METRICS}
            if not metrics:
                return
            left = (time.monotonic() - started) / state.global_step * (state.max_steps - state.global_step)
            shown = " · ".join(f"{name} {value:.3g}" for name, value in metrics.items())
            _say(f"{method} step {state.global_step}/{state.max_steps} · {shown} · {left:.0f} s left")
            record = {"method": method, "step": state.global_step, "steps": state.max_steps, **metrics}
            with Path("metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress())
    trainer.train()


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
