"""Each method's first loss, from a fresh adapter and from one to go on from, against the value computed by hand."""

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from prefanno.prompting import ChatTemplate
from prefanno.training.config import RunConfig
from prefanno.training.recipe import __main__ as recipe
from prefanno.training.recipe import base
from prefanno.training.recipe.examples import Example
from prefanno.training.recipe.preflight import check
from prefanno.training.recipe.trainers import trainer
from tests.training.recipe.rows import prepared, row

PAIRS = [
    row("I am Li.", "I am an AI.", minute=1),
    row("A riddle, then: what has pages?", "How can I help?", said="Entertain me.", minute=2),
    row("Of course.", "As a language model, I cannot do that.", ("A guest!", "A user."), said="Help.", minute=3),
]
REPLIES = [
    row("Good day.", None),
    row(None, "I am an AI."),
    row("Li!", None, said="Name?"),
    row(None, "Hm.", said="So?"),
]
ASKED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "sft": (PAIRS, {"method": "sft", "dataset": "preference"}),
    "simpo": (PAIRS, {"method": "simpo", "hyperparameters": {"beta": 1.5, "gamma": 0.6, "nll_weight": 0.5}}),
    "dpo": (PAIRS, {"method": "dpo", "hyperparameters": {"beta": 0.3, "nll_weight": 0.5}}),
    "orpo": (PAIRS, {"method": "orpo", "hyperparameters": {"beta": 0.2}}),
    "kto": (REPLIES, {"method": "kto", "hyperparameters": {"beta": 1.0, "desirable_weight": 2.0}}),
}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An adapter that changes the tiny model a lot."""
    folder = tmp_path_factory.mktemp("outputs") / "li-simpo-1"
    model = base.model(_config(folder, tiny_model))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=8.0)
    model.save_pretrained(folder)
    return folder


def _config(folder: Path, model: Path) -> RunConfig:
    return RunConfig("li", str(model), str(model), folder.name, [], {"r": 4, "alpha": 8})


@pytest.mark.parametrize("goes_on", [False, True], ids=["fresh", "going on"])
@pytest.mark.parametrize("method", ASKED)
def test_the_first_loss_is_that_of_the_stated_reference(  # noqa: PLR0913, PLR0917 - fixtures
    tmp_path: Path, tiny_model: Path, learnt: Path, monkeypatch: pytest.MonkeyPatch, method: str, goes_on: bool
) -> None:
    """The first logged loss is the formula's, with the model that the stage begins with as policy and as reference.

    The control: with the base model as reference, a stage that goes on from an adapter would begin with another loss.
    """
    rows, asked = ASKED[method]
    asked = {**asked, "hyperparameters": {**asked.get("hyperparameters", {}), "batch_size": 4}}
    config = prepared(tmp_path, tiny_model, rows, [asked], start=str(learnt) if goes_on else None)
    monkeypatch.chdir(tmp_path)
    recipe.main(["config.json"])
    logged = next(entry for entry in _metrics(tmp_path) if entry["kind"] == "step")["loss"]

    template = ChatTemplate.of(base.tokenizer(config))
    examples = check(config.stages[0], template, config.max_length).examples
    policy = base.model(config).eval()
    reference = policy if goes_on else base.model(replace(config, start=None)).eval()
    assert logged == pytest.approx(_loss(config.stages[0], examples, policy, reference), rel=2e-3)
    if goes_on and method in ("dpo", "kto"):
        bare = base.model(replace(config, start=None)).eval()
        assert logged != pytest.approx(_loss(config.stages[0], examples, policy, bare), rel=0.01)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_later_losses_compare_with_where_the_stage_began(
    tmp_path: Path, tiny_model: Path, learnt: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With weights that have moved since, the loss is that of the formula against the adapter gone on from.

    Policy and reference differ now, so beta, both sides, and KTO's KL term have their say.
    """
    rows, asked = ASKED[method]
    asked = {**asked, "hyperparameters": {**asked["hyperparameters"], "batch_size": 4}}
    config = prepared(tmp_path, tiny_model, rows, [asked], start=str(learnt))
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")
    tokenizer = base.tokenizer(config)
    examples = check(config.stages[0], ChatTemplate.of(tokenizer), config.max_length).examples
    model = base.model(config)
    made, scorer = trainer(model, tokenizer, examples, config.stages[0], config, tmp_path)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            parameter.data.add_(torch.randn_like(parameter) * 4)
    batch = next(iter(made.get_train_dataloader()))
    loss = made.compute_loss(model, batch).item()
    scorer.remove()
    reference = base.model(config).eval()
    expected = _loss(config.stages[0], examples, model, reference)
    assert loss == pytest.approx(expected, rel=5e-3)
    assert loss != pytest.approx(_loss(config.stages[0], examples, model, model), rel=0.02)


@pytest.mark.parametrize("wanted", [False, True])
def test_checkpointing_is_as_asked(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    """TRL turns it on by itself; the configuration decides."""
    rows, asked = ASKED["sft"]
    config = prepared(tmp_path, tiny_model, rows, [asked], activation_checkpointing=wanted)
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")
    tokenizer, model = base.tokenizer(config), base.model(config)
    examples = check(config.stages[0], ChatTemplate.of(tokenizer), config.max_length).examples
    made, scorer = trainer(model, tokenizer, examples, config.stages[0], config, tmp_path)
    made.train()
    scorer.remove()
    assert model.get_base_model().is_activation_checkpointing == wanted


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _loss(stage: dict[str, Any], examples: list[Example], policy: Any, reference: Any) -> float:
    """The formulas of the papers, as TRL has them, on plain forward passes."""
    if stage["method"] == "kto":
        return _kto(stage, examples, policy, reference)
    chosen = [_log_probs(policy, example.prompt_ids, example.chosen.ids) for example in examples if example.chosen]
    nll = -torch.cat(chosen).mean()
    if stage["method"] == "sft":
        return float(nll)
    rejected = [
        _log_probs(policy, example.prompt_ids, example.rejected.ids) for example in examples if example.rejected
    ]
    means = [torch.stack([reply.mean() for reply in side]) for side in (chosen, rejected)]
    if stage["method"] == "simpo":
        margin = stage["beta"] * (means[0] - means[1]) - stage["gamma"]
        return float(-functional.logsigmoid(margin).mean() + stage["nll_weight"] * nll)
    if stage["method"] == "orpo":
        odds = [side - torch.log1p(-side.exp()) for side in means]
        return float(nll - stage["beta"] * functional.logsigmoid(odds[0] - odds[1]).mean())
    ratios = [
        torch.stack([reply.sum() for reply in side])
        - torch.stack([_log_probs(reference, one.prompt_ids, one.sides[name].ids).sum() for one in examples])
        for name, side in (("chosen", chosen), ("rejected", rejected))
    ]
    return float(-functional.logsigmoid(stage["beta"] * (ratios[0] - ratios[1])).mean() + stage["nll_weight"] * nll)


def _kto(stage: dict[str, Any], examples: list[Example], policy: Any, reference: Any) -> float:
    """All replies are one batch; the KL term is the mean log-ratio of each prompt with the reply before, at least 0."""
    replies = [next(iter(example.sides.values())) for example in examples]
    others = [
        _ratio(policy, reference, example.prompt_ids, other.ids)
        for example, other in zip(examples, [replies[-1], *replies[:-1]], strict=True)
    ]
    kl = max(0.0, sum(others) / len(others))
    losses = []
    for example, reply in zip(examples, replies, strict=True):
        ratio, good = _ratio(policy, reference, example.prompt_ids, reply.ids), example.chosen is not None
        value = 1 / (1 + math.exp(-stage["beta"] * (ratio - kl if good else kl - ratio)))
        losses.append(stage["desirable_weight" if good else "undesirable_weight"] * (1 - value))
    return float(sum(losses) / len(losses))


def _ratio(policy: Any, reference: Any, prompt: list[int], reply: list[int]) -> float:
    return float(_log_probs(policy, prompt, reply).sum() - _log_probs(reference, prompt, reply).sum())


def _log_probs(model: Any, prompt: list[int], reply: list[int]) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
    found: Tensor = logits.float().log_softmax(dim=1).gather(1, torch.tensor(reply)[:, None])[:, 0]
    return found
