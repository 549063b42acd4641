"""Looking at the model while it trains: how it finds rows that are fixed, and what it replies to fixed prompts."""

import math
import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from prefanno.training.recipe.examples import Example
from prefanno.training.recipe.forward import NOT_LEARNT
from prefanno.training.recipe.guard import Evaluation, Probe, length
from prefanno.training.recipe.trainers import scored

PROBES = 4
PROBE_TOKENS = 48
SAMPLING = {"temperature": 0.85, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.15}  # as candidates are by default
ROWS, LEAST = 8, 3  # of the training rows, where fewer chosen replies than so many are held out: one is no measure


class Evaluator:
    """Measures one stage's model, always by the same rows, prompts and dice."""

    def __init__(self, trainer: Any, train: Sequence[Example], held_out: Sequence[Example], seed: int) -> None:
        self._trainer = trainer
        enough = sum(example.chosen is not None for example in held_out) >= LEAST
        self._on, self._seed = "held_out" if enough else "train", seed
        dice = random.Random(seed)  # noqa: S311 - a choice of rows, no secret
        self._rows = list(held_out) if enough else dice.sample(list(train), min(ROWS, len(train)))
        good = [example for example in train if example.chosen]
        if good and not any(example.chosen for example in self._rows):
            self._rows[0] = dice.choice(good)
        chosen = [len(example.chosen.ids) for example in train if example.chosen]
        as_probes = [length(min(tokens, PROBE_TOKENS), ended=tokens <= PROBE_TOKENS) for tokens in chosen]
        self.usual_length = fmean(as_probes) if as_probes else 0.0
        prompts = {example.prompt: example for example in (*held_out, *train)}
        self._probes = dice.sample(list(prompts.values()), min(PROBES, len(prompts)))

    def evaluate(self, step: int) -> Evaluation:
        """Measure; the model is in training mode again afterwards."""
        model = self._trainer.model
        model.eval()
        try:
            with torch.no_grad():
                chosen, rejected = self._log_probs()
                whole = all(math.isfinite(value) for value in (*chosen, *rejected) if value is not None)
                probes = self._replies() if whole else []  # nothing can be drawn by odds that are no numbers
        finally:
            model.train()
        margins = [
            good - bad for good, bad in zip(chosen, rejected, strict=True) if good is not None and bad is not None
        ]
        return Evaluation(
            step,
            self._on,
            _mean(chosen),
            _mean(rejected),
            fmean(margins) if margins else None,
            fmean(margin > 0 for margin in margins) if margins else None,
            probes,
        )

    def _log_probs(self) -> tuple[list[float | None], list[float | None]]:
        """Of each row's chosen and rejected reply, in nats for each token; None where it has none."""
        chosen: list[float | None] = []
        rejected: list[float | None] = []
        size = self._trainer.args.per_device_train_batch_size
        for start in range(0, len(self._rows), size):
            batch = scored(self._trainer, self._rows[start : start + size])
            outputs = self._trainer.model(**batch, fused_lm_head=True)
            lengths = outputs.label_mask.sum(dim=1)
            means = (outputs.log_probs.sum(dim=1) / lengths).tolist()
            found = [mean if length else None for mean, length in zip(means, lengths.tolist(), strict=True)]
            half = len(found) // 2
            chosen, rejected = chosen + found[:half], rejected + found[half:]
        return chosen, rejected

    def _replies(self) -> list[Probe]:
        """Replies as a person would get them, by the same dice each time: greedy ones run in circles by themselves."""
        tokenizer, model = self._trainer.processing_class, self._trainer.model
        prompts = [example.prompt_ids for example in self._probes]
        longest = max(map(len, prompts))
        pad = tokenizer.pad_token_id
        ids = _tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], model.device)
        mask = _tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], model.device)
        with torch.random.fork_rng():  # the training's own dice shall not notice
            torch.manual_seed(self._seed)
            written = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=PROBE_TOKENS,
                do_sample=True,
                pad_token_id=pad,
                **SAMPLING,
            )
        ends = _ends(model, tokenizer)
        replies = [_until_end(row[longest:], ends) for row in written.tolist()]
        likely = self._base_log_probs(prompts, replies)
        return [
            Probe(
                example.prompt, tokenizer.decode(reply, skip_special_tokens=True), len(reply), logp, _ended(reply, ends)
            )
            for example, reply, logp in zip(self._probes, replies, likely, strict=True)
        ]

    def _base_log_probs(self, prompts: list[list[int]], replies: list[list[int]]) -> list[float]:
        """How likely the base model finds the replies; 0, which is certain, of a reply without a token."""
        model, pad = self._trainer.model, self._trainer.processing_class.pad_token_id
        longest = max(len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True))
        rows, labels, masks = [], [], []
        for prompt, reply in zip(prompts, replies, strict=True):
            empty = longest - len(prompt) - len(reply)
            rows.append(prompt + reply + [pad] * empty)
            labels.append([NOT_LEARNT] * len(prompt) + reply + [NOT_LEARNT] * empty)
            masks.append([1] * (longest - empty) + [0] * empty)
        ids, told, mask = (_tensor(values, model.device) for values in (rows, labels, masks))
        with model.disable_adapter():
            outputs = model(input_ids=ids, attention_mask=mask, labels=told, fused_lm_head=True)
        means = outputs.log_probs.sum(dim=1) / outputs.label_mask.sum(dim=1).clamp(min=1)
        found: list[float] = means.tolist()
        return found


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _tensor(values: list[list[int]], device: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.long, device=device)


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a reply."""
    known = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])} - {None}


def _ended(reply: list[int], ends: set[int]) -> bool:
    return bool(reply) and reply[-1] in ends


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    """The reply with its end, without what pads it."""
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    return ids
