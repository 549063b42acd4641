"""Writes down which prompts a run holds out and which it is trained on: a comparison asks what no side has seen."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from prefanno.training.held_out import FILE, key
from prefanno.training.recipe.preflight import Checked


def write(checked: Sequence[Checked], held_out: Collection[str]) -> None:
    """To a file in the run's folder, of all stages; `held_out` are the keys of examples."""
    learnt = {example.key for found in checked for example in found.examples} - set(held_out)
    kept = [
        {"system_prompt": persona, "context": context, "message": message}
        for persona, context, message in map(json.loads, sorted(held_out))
    ]
    trained = sorted({key(message, context) for _, context, message in map(json.loads, learnt)})
    Path(FILE).write_text(json.dumps({"held_out": kept, "trained": trained}))
