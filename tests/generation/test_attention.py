"""Folded attention gives what transformers' own gives, for every way of sharing keys, padded or not."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from prefanno.generation import attention
from prefanno.generation.attention import NAME, attend
from tests.generation.conftest import Weights

KV_HEADS, SIZE, TOKENS = 2, 8, 11


def _tensors(groups: int, queries: int = 1) -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(groups)
    heads = KV_HEADS * groups
    return (
        torch.randn(3, heads, queries, SIZE, generator=generator),
        torch.randn(3, KV_HEADS, TOKENS, SIZE, generator=generator),
        torch.randn(3, KV_HEADS, TOKENS, SIZE, generator=generator),
    )


def _mask(kind: str, heads: int) -> Any:
    import torch

    if kind == "none":
        return None
    mask = torch.ones(3, 1, 1, TOKENS, dtype=torch.bool)
    mask[1, ..., :4] = False  # padded on the left
    mask[2, ..., :9] = False  # a window that slid
    if kind == "additive":
        return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    return mask.expand(3, heads, 1, TOKENS) if kind == "per head" else mask


def _slowly(query: Any, key: Any, value: Any, mask: Any, scale: float) -> Any:
    """Attention as its definition says, head by head."""
    import torch

    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("kind", ["none", "boolean", "additive", "per head"])
@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_folded_attention_is_attention(groups: int, kind: str) -> None:
    """However many heads share keys and values, with every kind of mask; a fold of the wrong heads would be seen."""
    import torch

    query, key, value = _tensors(groups)
    mask = _mask(kind, query.shape[1])
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    found, _ = attend(module, query, key, value, mask, dropout=0.0, scaling=0.3, sliding_window=None)
    expected = _slowly(query, key, value, mask, 0.3)
    assert torch.allclose(found, expected, atol=1e-5)
    other = query.reshape(3, groups, KV_HEADS, 1, SIZE).transpose(1, 2).reshape(query.shape)
    control, _ = attend(module, other, key, value, mask, scaling=0.3)
    assert groups == 1 or not torch.allclose(control, expected, atol=1e-2)


def test_a_prompt_is_left_to_transformers() -> None:
    """Several tokens attend to those before them only, as without the fold."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    query, key, value = _tensors(3, TOKENS)
    module: Any = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    found, _ = attend(module, query, key, value, None, scaling=0.3)
    assert torch.equal(found, sdpa_attention_forward(module, query, key, value, None, scaling=0.3)[0])
    changed = value.clone()
    changed[:, :, -1] += 1
    after, _ = attend(module, query, key, changed, None, scaling=0.3)
    assert torch.equal(after[:, :-1], found[:, :-1]) and not torch.equal(after[:, -1], found[:, -1])


def test_what_the_fold_does_not_know_is_left_to_transformers() -> None:
    """A bias for each head is added; a cap on scores is refused, as SDPA refuses it."""
    import torch

    query, key, value = _tensors(2)
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    bias = torch.randn(1, 4, 1, TOKENS, generator=torch.Generator().manual_seed(1))
    found, _ = attend(module, query, key, value, None, scaling=0.3, position_bias=bias)
    assert torch.allclose(found, _slowly(query, key, value, bias, 0.3), atol=1e-5)
    with pytest.raises(ValueError, match="softcap"):
        attend(module, query, key, value, None, scaling=0.3, softcap=50.0)


def _qwen() -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 300}
    heads: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    model: Any = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    return model.eval()


def _decoded(model: Any, *, padded: bool) -> Any:
    """The scores after each of five tokens that follow three prompts."""
    import torch
    from transformers import DynamicCache

    ids = torch.randint(3, 250, (3, 14), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0
    cache, found = DynamicCache(config=model.config), []
    with torch.inference_mode():
        for start, end in ((0, 9), (9, 10), (10, 11), (11, 12), (12, 13)):
            output = model(
                input_ids=ids[:, start:end],
                attention_mask=mask[:, :end] if padded else None,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, start:end],
                past_key_values=cache,
                use_cache=True,
            )
            found.append(output.logits[:, -1])
    return torch.stack(found)


def _wrong(module: Any, query: Any, *rest: Any, **options: Any) -> Any:
    return attend(module, query.flip(1) if query.shape[2] == 1 else query, *rest, **options)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "with an adapter"])
def test_models_decode_the_same(weights: Weights, kind: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real models, and one with an adapter, give the scores that they give without the fold; a wrong one would show."""
    import torch
    from transformers import AttentionInterface

    model = _qwen() if kind == "qwen3" else copy.deepcopy(weights.model)
    plain = model
    if kind == "with an adapter":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(3)
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(plain, lora).eval()
    expected = _decoded(model, padded=padded)
    attention.use(plain)
    assert plain.config._attn_implementation == NAME
    assert torch.allclose(_decoded(model, padded=padded), expected, atol=1e-5)
    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, _wrong)
    assert not torch.allclose(_decoded(model, padded=padded), expected, atol=1e-3)


def test_a_model_that_attends_otherwise_stays_as_it_is(weights: Weights) -> None:
    """What was told to attend without SDPA does so."""
    model = copy.deepcopy(weights.model)
    model.set_attn_implementation("eager")
    attention.use(model)
    assert model.config._attn_implementation == "eager"
