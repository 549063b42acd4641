"""Scoring a batch with the prompt shared and only what is learnt put through the head: the same numbers as TRL's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from prefanno.training.recipe import forward
from prefanno.training.recipe.forward import Scorer

PAIRS = [
    {"prompt_ids": [5, 6, 7, 8, 9], "chosen_ids": [10, 11, 12], "rejected_ids": [13]},
    {"prompt_ids": [20, 21], "chosen_ids": [22], "rejected_ids": [23, 24, 25, 26, 27, 28]},
    {"prompt_ids": [30], "chosen_ids": [31, 32], "rejected_ids": [33, 34]},
]


def _model(folder: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def _batch(pairs: list[dict[str, list[int]]] = PAIRS) -> dict[str, Any]:
    batch = DataCollatorForPreference(pad_token_id=0)(pairs)
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    return {**batch, "labels": labels}


def _scored(model: Any, batch: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Log-probabilities, their mask, and the gradients of a loss that weighs each token otherwise."""
    model.zero_grad()
    outputs = model(**batch, fused_lm_head=True)
    weights = torch.linspace(0.5, 2.0, outputs.log_probs.numel()).reshape(outputs.log_probs.shape)
    (outputs.log_probs * weights).sum().backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return outputs.log_probs.detach(), outputs.label_mask, gradients


@pytest.mark.parametrize("pairs", [True, False], ids=["prompt shared", "rows apart"])
def test_log_probabilities_and_gradients_are_those_of_trl(tiny_model: Path, pairs: bool) -> None:
    """Each token's log-probability, and the gradient of every trained weight, as TRL computes them from whole rows."""
    ours, theirs = _model(tiny_model), _model(tiny_model)
    scorer = Scorer(ours.get_base_model(), pairs=pairs)
    assert scorer.shares_rightly(_batch()) == pairs
    add_fused_lm_head(theirs.get_base_model(), outputs=("log_probs",))
    found, mask, gradients = _scored(ours, _batch())
    expected, their_mask, their_gradients = _scored(theirs, _batch())
    assert torch.equal(mask, their_mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, their_gradients[name], atol=1e-5, rtol=1e-4)


def test_many_positions_go_through_the_head_in_parts(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two positions give the same as all at once."""
    model = _model(tiny_model)
    Scorer(model.get_base_model(), pairs=True)
    whole = _scored(model, _batch())
    monkeypatch.setattr(forward, "CHUNK", 2)
    parts = _scored(model, _batch())
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[2], whole[2])


def test_pairs_of_two_prompts_are_scored_apart(tiny_model: Path) -> None:
    """A batch whose halves do not belong together is scored in rows of their own, and rightly."""
    batch = _batch()
    batch["input_ids"][3, 0] = 99
    ours, theirs = _model(tiny_model), _model(tiny_model)
    Scorer(ours.get_base_model(), pairs=True)
    add_fused_lm_head(theirs.get_base_model(), outputs=("log_probs",))
    torch.testing.assert_close(_scored(ours, batch)[0], _scored(theirs, batch)[0], atol=1e-5, rtol=1e-5)


def test_rows_that_are_no_pairs_are_scored_apart(tiny_model: Path) -> None:
    """An odd number of rows, as of replies to the probes, is scored row by row, also where their prompts are one."""
    rows = {name: tensor[[0, 0, 3]] for name, tensor in _batch().items()}
    ours, theirs = _model(tiny_model), _model(tiny_model)
    Scorer(ours.get_base_model(), pairs=True)
    add_fused_lm_head(theirs.get_base_model(), outputs=("log_probs",))
    torch.testing.assert_close(_scored(ours, rows)[0], _scored(theirs, rows)[0], atol=1e-5, rtol=1e-5)


def test_a_model_that_shares_wrongly_is_found_out(tiny_model: Path) -> None:
    """Where the shared prompt gives other numbers, as in a model that does not heed the mask, it is not shared."""
    model = _model(tiny_model)
    for weights in model.parameters():
        weights.data.mul_(8)  # else a random model hardly attends to anything
    scorer = Scorer(model.get_base_model(), pairs=True)
    assert scorer.shares_rightly(_batch())  # the control
    backbone = model.get_base_model().model
    heeding = backbone.forward
    backbone.forward = lambda **given: heeding(**{**given, "attention_mask": None})
    assert not scorer.shares_rightly(_batch())
    backbone.forward = heeding
    assert not scorer._shares  # nor later


@pytest.mark.parametrize(
    "change",
    [{"sliding_window": 8}, {"layer_types": ["full_attention", "linear_attention"]}, {"_attn_implementation": "flash"}],
    ids=["window", "linear", "flash"],
)
def test_models_of_other_attention_are_scored_apart(tiny_model: Path, change: dict[str, Any]) -> None:
    """A window, layers without attention, or a kernel without masks: the prompt is not shared."""
    config = AutoModelForCausalLM.from_pretrained(tiny_model).config
    assert forward._has_causal_attention(config)
    for name, value in change.items():
        setattr(config, name, value)
    assert not forward._has_causal_attention(config)


def test_the_model_has_its_own_forward_again(tiny_model: Path) -> None:
    """After a stage the model is as it was: `generate` and the next stage see nothing of the scorer."""
    model = _model(tiny_model).get_base_model()
    scorer = Scorer(model, pairs=True)
    assert "forward" in vars(model)
    scorer.remove()
    assert "forward" not in vars(model)


def test_metrics_are_means_since_the_last_look(tiny_model: Path) -> None:
    """Chosen and rejected in nats for each token, their margin and how many pairs are right; then all is forgotten."""
    model = _model(tiny_model)
    scorer = Scorer(model.get_base_model(), pairs=True)
    log_probs, mask, _ = _scored(model, _batch())
    means = log_probs.sum(dim=1) / mask.sum(dim=1)
    found = scorer.metrics()
    assert found["chosen_logp"] == pytest.approx(means[:3].mean().item())
    assert found["margin"] == pytest.approx((means[:3] - means[3:]).mean().item())
    assert found["accuracy"] == pytest.approx((means[:3] > means[3:]).float().mean().item())
    assert scorer.tokens == 15 and scorer.metrics() == {}
    scorer._pairs, scorer.good = False, [True, False, True, False, False, False]
    _scored(model, _batch())
    assert scorer.metrics()["chosen_logp"] == pytest.approx(means[[0, 2]].mean().item())
