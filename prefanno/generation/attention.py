"""Attention of a decode step, folded: query heads that share keys and values are rows of one small matrix product.

On a CPU, torch's attention with one query token is several times slower than with a few, in bfloat16 most of all.
transformers folds so itself, but only where there is a mask.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NAME = "sdpa_folded"
# Where a model asks for one of these, transformers' own function knows it.
PLAIN = ("softcap", "position_bias", "cache")


def use(model: Any) -> None:
    """Let a model that attends by SDPA fold where it can."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation != "sdpa":  # noqa: SLF001 - it has no public name
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attend(
    module: Any, query: "Tensor", key: "Tensor", value: "Tensor", attention_mask: "Tensor | None", **options: Any
) -> tuple["Tensor", None]:
    """As `sdpa_attention_forward`: all are rows x heads x tokens x size, the result rows x tokens x heads x size."""
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not _is_foldable(query, attention_mask, options):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    rows, heads, _, size = query.shape
    folded = query.reshape(rows, key.shape[1], -1, size)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=options.get("scaling"))
    return output.reshape(rows, 1, heads, -1), None


def _is_foldable(query: "Tensor", mask: "Tensor | None", options: dict[str, Any]) -> bool:
    """Whether there is one token a row, and nothing that differs from head to head."""
    if query.device.type != "cpu" or query.shape[2] != 1 or options.get("dropout"):
        return False
    shared = mask is None or mask.shape[1] == 1
    return shared and all(options.get(name) is None for name in PLAIN)
