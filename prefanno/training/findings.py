"""What preflight finds in the rows of a run, and what is done about each."""

from collections.abc import Mapping

LEFT_OUT, CHANGED, KEPT = "left_out", "changed", "kept"
FINDINGS: Mapping[str, tuple[str, str]] = {  # what is done about it, and what it is
    "unreadable": (LEFT_OUT, "cannot be read"),
    "too_long": (LEFT_OUT, "longer than max_length"),
    "empty_reply": (LEFT_OUT, "a reply is empty"),
    "equal_sides": (LEFT_OUT, "chosen equals rejected"),
    "vanished_thinking": (LEFT_OUT, "a thought does not come through the model's template"),
    "tag_in_reply": (LEFT_OUT, "a reply holds a think tag; a thought belongs into its own field"),
    "duplicate": (LEFT_OUT, "the same as an earlier row"),
    "undecided": (LEFT_OUT, "the reply won as often as it lost, and the method learns from single replies"),
    "contradictory": (LEFT_OUT, "a later row says the opposite"),
    "one_sided_thinking": (CHANGED, "trained without thoughts, since one side has none"),
    "unknown_tokens": (KEPT, "has characters that the model's tokenizer does not know"),
    "length_bias": (KEPT, "one side is nearly always the longer one, so length is what may be learnt"),
    "one_sided_replies": (KEPT, "all replies are good, or all are bad: KTO needs both"),
}
