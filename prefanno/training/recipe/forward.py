"""How a batch is scored: the log-probabilities of its replies, with less computing and memory than TRL's own way.

TRL's trainers call `model(..., labels=labels, fused_lm_head=True)` and get each token's log-probability; the losses are
theirs, and stay. What this does otherwise (measured in docs/benchmarks.md):

- Only positions that are learnt from go through the language model's head. On a CPU, TRL puts all of them through it.
- The head is frozen, so the gradient is made together with the log-probabilities: nothing of the size of positions ×
  vocabulary is kept, or computed again for the backward pass.
- A pair's prompt is computed once: prompt, chosen and rejected reply lie behind each other in one row, and a mask hides
  the chosen reply from the rejected one (prefix sharing, arXiv:2410.20305). Positions count as in rows of their own.

A model whose attention is not plain causal attention, or whose head does more than multiply, is left to TRL.
"""

from collections.abc import Sequence
from functools import wraps
from statistics import fmean
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

NOT_LEARNT = -100  # the label of such a position, in TRL and torch
CHUNK = 256  # positions that go through the head at once: 50 MB of logits for a vocabulary of 50,000
MASKED = 1 << 27  # places in the mask of a batch: more would take more memory than the prompts' sharing saves
UNLIKE = 0.05  # nats for each token; bfloat16 alone makes less


class Scorer:
    """Scores batches of one model, and keeps what the replies got that are learnt from.

    `pairs` says that the second half of a batch are the rejected replies to the prompts of the first. Else `good` says
    of each reply of the batch to come whether it is a chosen one; None: all are. `tokens` counts those learnt from.
    """

    def __init__(self, model: Any, *, pairs: bool) -> None:
        self._model, self._pairs = model, pairs
        self._plain = _is_plain(model.config.get_text_config()) and model.get_output_embeddings().bias is None
        self._shares = pairs and self._plain and _has_causal_attention(model.config.get_text_config())
        self._got: list[tuple[list[float], list[float]]] = []
        self.good: list[bool] | None = None
        self.tokens = 0
        if not self._plain:
            add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        self._forward = model.forward

        @wraps(type(model).forward)  # `generate` reads the signature
        def scored(_model: Any, *args: Any, **kwargs: Any) -> Any:
            return self.forward(*args, **kwargs)

        model.forward = MethodType(scored, model)

    def remove(self) -> None:
        """Give the model its own forward again."""
        del self._model.forward

    def forward(self, *args: Any, labels: Tensor | None = None, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        """The model's own forward, but for what TRL's trainers ask."""
        if not fused_lm_head or labels is None:
            return self._forward(*args, **({} if labels is None else {"labels": labels}), **kwargs)
        if not self._plain:
            outputs = self._forward(*args, labels=labels, fused_lm_head=True, **kwargs)
        else:
            outputs = self._outputs(labels=labels, **kwargs)
        if torch.is_grad_enabled():
            self._keep(_means(outputs.log_probs.detach(), outputs.label_mask).tolist())
            self.tokens += int(outputs.label_mask.sum())
        return outputs

    def metrics(self) -> dict[str, float]:
        """Means over the replies scored since the last call, in nats for each token; of pairs also how many are right.

        A pair is right where its chosen reply is the likelier one.
        """
        chosen = [value for good, _ in self._got for value in good]
        rejected = [value for _, bad in self._got for value in bad]
        self._got = []
        found = {
            name: fmean(values) for name, values in (("chosen_logp", chosen), ("rejected_logp", rejected)) if values
        }
        if self._pairs and chosen:
            margins = [good - bad for good, bad in zip(chosen, rejected, strict=True)]
            found |= {"margin": fmean(margins), "accuracy": fmean(margin > 0 for margin in margins)}
        return found

    def _keep(self, means: list[float]) -> None:
        if self._pairs:
            half = len(means) // 2
            self._got.append((means[:half], means[half:]))
        else:
            told = list(zip(means, self.good or [True] * len(means), strict=True))
            self._got.append(([mean for mean, good in told if good], [mean for mean, good in told if not good]))

    def shares_rightly(self, inputs: dict[str, Tensor]) -> bool:
        """Whether this pair's replies score alike with the prompt shared and in rows of their own; if not, never share.

        A model may have a kind of attention that `_has_causal_attention` does not know.
        """
        if self._shares:
            with torch.no_grad():
                shared = self._outputs(**inputs)
                self._shares = False
                apart = self._outputs(**inputs)
            unlike = _means(shared.log_probs, shared.label_mask) - _means(apart.log_probs, apart.label_mask)
            self._shares = bool(unlike.abs().max() < UNLIKE)
        return self._shares

    def _outputs(self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_kwargs: Any) -> Any:
        wanted = labels[:, 1:] != NOT_LEARNT
        masked = len(input_ids) // 2 * (2 * input_ids.shape[1]) ** 2
        if self._shares and masked <= MASKED and (prompts := _prompts(input_ids, labels)) is not None:
            hidden = self._shared(input_ids, labels, prompts)
        else:
            backbone = self._model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
            hidden = backbone.last_hidden_state[:, :-1][wanted]
        weight = self._model.get_output_embeddings().weight
        found: Tensor = _LogProbs.apply(hidden, weight, labels[:, 1:][wanted])  # type: ignore[no-untyped-call]
        log_probs = found.new_zeros(wanted.shape).masked_scatter(wanted, found)
        nothing = torch.zeros_like(log_probs, requires_grad=False)  # metrics of TRL's that nobody reads
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / wanted.sum().clamp(min=1),
            log_probs=log_probs,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
            label_mask=wanted,
        )

    def _shared(self, input_ids: Tensor, labels: Tensor, prompts: Sequence[int]) -> Tensor:
        """The hidden states before each token to be learnt, of the chosen replies, then of the rejected ones."""
        count, device = len(prompts), input_ids.device
        lengths = (labels != NOT_LEARNT).sum(dim=1).tolist()
        sizes = list(zip(prompts, lengths[:count], lengths[count:], strict=True))
        longest = max(map(sum, sizes))
        packed = input_ids.new_zeros((count, longest))
        positions = input_ids.new_zeros((count, longest))
        seen = torch.eye(longest, dtype=torch.bool, device=device).repeat(count, 1, 1)
        for row, (prompt, chosen, rejected) in enumerate(sizes):
            first, end = prompt + chosen, prompt + chosen + rejected
            packed[row, :first] = input_ids[row, :first]
            packed[row, first:end] = input_ids[count + row, prompt : prompt + rejected]
            positions[row, :first] = torch.arange(first, device=device)
            positions[row, first:end] = torch.arange(prompt, prompt + rejected, device=device)
            seen[row, :end, :end] = torch.ones((end, end), dtype=torch.bool, device=device).tril()
            seen[row, first:end, prompt:first] = False
        dtype = self._model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
        backbone = self._model.base_model(
            input_ids=packed, attention_mask=mask[:, None], position_ids=positions, use_cache=False
        )
        before = [[prompt - 1, *range(prompt, prompt + chosen - 1)] for prompt, chosen, _ in sizes]
        before += [
            [prompt - 1, *range(prompt + chosen, prompt + chosen + rejected - 1)] for prompt, chosen, rejected in sizes
        ]
        rows = [row % count for row, places in enumerate(before) for _ in places]
        places = [place for of_row in before for place in of_row]
        states: Tensor = backbone.last_hidden_state[rows, places]
        return states


class _LogProbs(torch.autograd.Function):
    """Log-probabilities of tokens, with the gradient for the hidden states made at once: the head gets none."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
        """Of hidden states (n, width), the head's weight (vocabulary, width) and tokens (n,): float32 (n,)."""
        found = torch.empty(len(tokens), dtype=torch.float32, device=hidden.device)
        needed = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needed else None
        for start in range(0, len(tokens), CHUNK):
            part, told = hidden[start : start + CHUNK], tokens[start : start + CHUNK]
            logits = (part @ weight.T).float()
            norm = logits.logsumexp(dim=1)
            found[start : start + CHUNK] = logits.gather(1, told[:, None])[:, 0] - norm
            if gradient is not None:
                shares = logits.sub_(norm[:, None]).exp_().to(weight.dtype)
                gradient[start : start + CHUNK] = weight[told] - shares @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return found

    @staticmethod
    def backward(ctx: Any, asked: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the hidden states, by that of the log-probabilities."""
        (gradient,) = ctx.saved_tensors
        return gradient * asked[:, None].to(gradient.dtype), None, None


def _means(log_probs: Tensor, mask: Tensor) -> Tensor:
    """For each row, nats for each token."""
    return log_probs.sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _prompts(input_ids: Tensor, labels: Tensor) -> list[int] | None:
    """The length of each pair's prompt; None where they are no pairs, or one has not the same prompt on both sides."""
    count, odd = divmod(len(input_ids), 2)
    if odd:
        return None
    starts = (labels != NOT_LEARNT).int().argmax(dim=1).tolist()
    for row in range(count):
        start = starts[row]
        same = start == starts[count + row] and start > 0
        if not same or not torch.equal(input_ids[row, :start], input_ids[count + row, :start]):
            return None
    return starts[:count]


def _is_plain(config: Any) -> bool:
    """Whether the head only multiplies: others scale or cap the logits, or have routers with a loss of their own."""
    odd = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")
    return not any(getattr(config, name, None) for name in odd) and not hasattr(config, "output_router_logits")


def _has_causal_attention(config: Any) -> bool:
    """Whether every layer sees all that came before, by an attention that takes a mask of any shape."""
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    takes_masks = getattr(config, "_attn_implementation", None) in ("sdpa", "eager")
    return kinds == {"full_attention"} and not window and takes_masks
