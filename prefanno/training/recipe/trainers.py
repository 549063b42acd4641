"""TRL's trainer for each method, fed with tokens that prefanno made, and scored by `forward.Scorer`.

The losses are TRL's. `trl.experimental` may change in any release: this is the only place that imports it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from prefanno.training.config import RunConfig
from prefanno.training.methods import METHODS
from prefanno.training.recipe.examples import Example, lone, together
from prefanno.training.recipe.forward import NOT_LEARNT, Scorer

Row = dict[str, Any]
KEPT = 2  # checkpoints of a stage: the newest may not be complete yet
WARM_UP, WARMED_UP = 2, 20  # steps of warm-up, in a stage of at least so many: the first has a learning rate of 0


def trainer(  # noqa: PLR0913, PLR0917 - what a stage is made of
    model: Any, tokenizer: Any, order: Sequence[Example], stage: Row, config: RunConfig, folder: Path
) -> tuple[Any, Scorer]:
    """A trainer that goes once through the examples in this order, and what scores its batches.

    Its checkpoints go to `folder`.
    """
    pairs = METHODS[stage["method"]].pairs
    order = order[: len(order) - lone(len(order), together(order, stage)[0], stage)]
    make: dict[str, Any] = {"sft": _sft, "simpo": _simpo, "dpo": _dpo, "orpo": _orpo, "kto": _kto}
    made = make[stage["method"]](
        stage,
        _arguments(stage, config, order) | {"output_dir": str(folder)},
        model=model,
        train_dataset=_dataset(order, _pair if pairs else _single),
        processing_class=tokenizer,
    )
    made.scorer = scorer = Scorer(model.get_base_model(), pairs=pairs)
    if stage["method"] in ("simpo", "orpo"):
        made.aux_loss_enabled = False  # of routers: `_both_sides` has none, and TRL leaves it out by default
    if pairs:
        scorer.shares_rightly(scored(made, order[:1]))
    return made, scorer


def scored(trainer: Any, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Pairs as one batch, as the model gets them: input_ids, attention_mask and labels, (2 × pairs, length) each."""
    batch = _collator(trainer.processing_class)([_pair(example) for example in examples])
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, NOT_LEARNT)
    return {name: tensor.to(trainer.args.device) for name, tensor in (batch | {"labels": labels}).items()}


class _Paired:
    """A trainer of pairs on tokens, and without logits of a whole batch."""

    def tokenize_row(self, feature: Row, _model: Any = None) -> Row:
        """They are tokens already."""
        return feature

    def concatenated_forward(self, model: Any, batch: Row) -> Any:
        """Mean log-probabilities of both sides, nothing in place of their logits, and the NLL of the chosen replies."""
        return _both_sides(model, batch)


class TokenCPOTrainer(_Paired, CPOTrainer):
    """TRL's, on tokens: SimPO is a loss of it."""


class TokenORPOTrainer(_Paired, ORPOTrainer):
    """TRL's, on tokens, with the NLL of the chosen reply alone, as in the paper: TRL's own has the prompt's, too."""


class TokenDPOTrainer(DPOTrainer):
    """TRL's, on tokens."""

    def _prepare_dataset(self, dataset: Any, *_others: Any) -> Any:
        return dataset


class TokenKTOTrainer(KTOTrainer):
    """TRL's, on tokens. Its KL term takes each prompt with the reply to another one of its batch.

    Of that reply as much as makes no row longer than the longest one: the model may be able to read no more.
    """

    scorer: Scorer

    def compute_loss(self, model: Any, inputs: Row, *others: Any, **named: Any) -> Any:
        """The scorer cannot see which replies are good."""
        self.scorer.good = inputs["label"].tolist()
        return super().compute_loss(model, inputs, *others, **named)  # type: ignore[no-untyped-call]

    def _prepare_dataset(self, dataset: Any, _processing_class: Any, args: Any, *_others: Any) -> Any:
        if not self.calculate_KL:
            return dataset
        prompts, replies, size = dataset["prompt_ids"], dataset["completion_ids"], args.per_device_train_batch_size
        batches = [replies[start : start + size] for start in range(0, len(replies), size)]
        others = [ids for batch in batches for ids in (*batch[-1:], *batch[:-1])]
        room = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True))
        cut = [ids[: room - len(prompt)] for prompt, ids in zip(prompts, others, strict=True)]  # it is not learnt
        return dataset.add_column("KL_completion_ids", cut)


def _both_sides(model: Any, batch: Row) -> tuple[Tensor, ...]:
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, NOT_LEARNT)
    outputs = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, fused_lm_head=True
    )
    sums, lengths = outputs.log_probs.sum(dim=1), outputs.label_mask.sum(dim=1)
    chosen, rejected = (sums / lengths).chunk(2)
    count = len(chosen)
    nothing = torch.zeros((), device=sums.device)
    return chosen, rejected, nothing, nothing, -sums[:count].sum() / lengths[:count].sum()


def _sft(_stage: Row, arguments: Row, **given: Any) -> Any:
    return SFTTrainer(args=SFTConfig(**arguments, completion_only_loss=True, packing=False), **given)


def _simpo(stage: Row, arguments: Row, **given: Any) -> Any:
    """SimPO with an NLL term."""
    config = CPOConfig(
        **arguments,
        loss_type="simpo",
        beta=stage["beta"],
        simpo_gamma=stage["gamma"],
        cpo_alpha=stage["nll_weight"],
        remove_unused_columns=False,
    )
    return TokenCPOTrainer(args=config, data_collator=_collator(given["processing_class"]), **given)


def _dpo(stage: Row, arguments: Row, **given: Any) -> Any:
    """DPO with an NLL term. TRL copies the adapter as it is now, and that copy is the reference."""
    losses = {stage["loss"]: 1.0, "sft": stage["nll_weight"]}
    used = {loss: weight for loss, weight in losses.items() if weight}
    config = DPOConfig(
        **arguments,
        loss_type=list(used),
        loss_weights=list(used.values()),
        beta=stage["beta"],
        label_smoothing=stage["label_smoothing"],
    )
    return TokenDPOTrainer(args=config, **given)


def _orpo(stage: Row, arguments: Row, **given: Any) -> Any:
    config = ORPOConfig(**arguments, beta=stage["beta"], remove_unused_columns=False)
    return TokenORPOTrainer(args=config, data_collator=_collator(given["processing_class"]), **given)


def _kto(stage: Row, arguments: Row, **given: Any) -> Any:
    config = KTOConfig(
        **arguments,
        loss_type=stage["loss"],
        beta=stage["beta"],
        desirable_weight=stage["desirable_weight"],
        undesirable_weight=stage["undesirable_weight"],
    )
    return TokenKTOTrainer(args=config, **given)


def _arguments(stage: Row, config: RunConfig, order: Sequence[Example]) -> Row:
    """What every TRL trainer is told. The dataset holds all epochs in their order, so it is gone through once."""
    size, steps = together(order, stage)
    return {
        "learning_rate": stage["learning_rate"],
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": stage["accumulation"],
        "max_length": None if stage["method"] == "kto" else config.max_length,  # KTO's other replies may be longer
        "lr_scheduler_type": "cosine",
        "warmup_steps": WARM_UP if steps >= WARMED_UP else 0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # else a loss that is no number would be told as the mean of the others
        "save_strategy": "no",  # but where a callback asks for it
        "save_total_limit": KEPT,
        "report_to": "none",
        "disable_tqdm": True,
        "activation_checkpointing": config.activation_checkpointing,
        "bf16": False,  # the weights are in bfloat16 already; autocast on top costs time on a CPU and gains nothing
        "seed": config.seed,
    }


def _pair(example: Example) -> Row:
    """For a method without pairs the missing side is empty."""
    return {
        "prompt_ids": example.prompt_ids,
        "chosen_ids": example.chosen.ids if example.chosen else [],
        "rejected_ids": example.rejected.ids if example.rejected else [],
    }


def _single(example: Example) -> Row:
    """One reply in the shape of SFT and in that of KTO: each takes what it knows."""
    ((side, reply),) = example.sides.items()
    return {
        "input_ids": example.prompt_ids + reply.ids,
        "completion_mask": [0] * len(example.prompt_ids) + [1] * len(reply.ids),
        "prompt_ids": example.prompt_ids,
        "completion_ids": reply.ids,
        "label": side == "chosen",
    }


def _collator(tokenizer: Any) -> DataCollatorForPreference:
    return DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)


def _dataset(order: Sequence[Example], row_of: Callable[[Example], Row]) -> datasets.Dataset:
    """Each example once, and the order by its place: an example comes in every epoch."""
    datasets.disable_progress_bars()
    different = {id(example): example for example in order}
    places = {known: place for place, known in enumerate(different)}
    rows = datasets.Dataset.from_list([row_of(example) for example in different.values()])
    return rows.select([places[id(example)] for example in order])
