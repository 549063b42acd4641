"""Keys and values of a batch, in memory that is reserved ahead.

transformers' own cache grows by copying all of it at every step; these layers copy once in `CHUNK` steps.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 256  # tokens; a batch of 4 on a model of 4 billion weights reserves 150 MB for them


def is_joinable(cache: Any) -> bool:
    """Whether prompts read into such caches can be rows of one batch: not where layers slide or keep other states."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def join(caches: Sequence[Any], copies: Sequence[int]) -> Any:
    """One cache with `copies` rows of each, shorter ones padded on the left. Consumes them, to need the memory once."""
    from transformers.cache_utils import CacheLayerMixin

    CacheLayerMixin.register(Reserved)
    for index in range(len(caches[0].layers)):
        layers = [cache.layers[index] for cache in caches]
        keys, values = (_padded([getattr(layer, name) for layer in layers], copies) for name in ("keys", "values"))
        caches[0].layers[index] = Reserved(keys, values)
        for cache in caches[1:]:
            cache.layers[index] = None
    return caches[0]


class Reserved:
    """What transformers asks of a layer of a cache while it decodes.

    `keys` and `values` are the part in use of what is reserved, rows x heads x tokens x size.
    """

    is_sliding = is_compileable = False
    is_initialized = True

    def __init__(self, keys: "Tensor", values: "Tensor") -> None:
        self._reserved = [keys, values]
        self._length = keys.shape[-2] - CHUNK

    def get_seq_length(self) -> int:
        """How many tokens are in it."""
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many tokens a mask covers, and from which one on."""
        return self._length + query_length, 0

    def update(self, key_states: "Tensor", value_states: "Tensor", *_: Any, **__: Any) -> tuple["Tensor", "Tensor"]:
        """Write the next tokens behind the last, and return all."""
        start, end = self._length, self._length + key_states.shape[-2]
        if end > self._reserved[0].shape[-2]:
            self._reserved = [_grown(tensor, end + CHUNK) for tensor in self._reserved]
        keys, values = self._reserved
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self._length = end
        return keys[:, :, :end], values[:, :, :end]

    def batch_select_indices(self, indices: "Tensor") -> None:
        """Keep these rows."""
        self._reserved = [tensor[indices.to(tensor.device)] for tensor in self._reserved]


def _padded(tensors: Sequence["Tensor"], copies: Sequence[int]) -> "Tensor":
    """Rows of each, the ends of all at the same place, with a chunk of room behind; zeros before a shorter one."""
    width = max(tensor.shape[-2] for tensor in tensors)
    _, heads, _, size = tensors[0].shape
    joined = tensors[0].new_zeros(sum(copies), heads, width + CHUNK, size)
    row = 0
    for tensor, count in zip(tensors, copies, strict=True):
        joined[row : row + count, :, width - tensor.shape[-2] : width] = tensor
        row += count
    return joined


def _grown(tensor: "Tensor", length: int) -> "Tensor":
    grown = tensor.new_zeros(*tensor.shape[:2], length, tensor.shape[-1])
    grown[:, :, : tensor.shape[-2]] = tensor
    return grown
