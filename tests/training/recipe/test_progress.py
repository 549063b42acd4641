"""Which step of a stage is the one to go back to."""

from typing import Any, cast

import pytest

from prefanno.training.recipe import progress
from prefanno.training.recipe.guard import Alarm, Evaluation
from prefanno.training.recipe.progress import Progress

WARNING = Alarm("chosen_falls", stops=False, text="less likely")
Seen = tuple[float, float, bool]  # chosen and rejected, nats for each token; whether there was an alarm


@pytest.mark.parametrize(
    ("seen", "kept"),
    [
        ([(-1.7, -2.0, False), (-1.6, -2.0, False), (-1.5, -2.5, False)], 2),  # what becomes better and better
        ([(-1.7, -2.0, False), (-1.6, -2.0, False), (-1.65, -2.5, False)], 2),  # a larger margin, still likelier
        ([(-1.7, -2.0, False), (-1.6, -2.0, False), (-1.75, -2.9, False)], 1),  # a larger margin at their cost
        ([(-1.7, -2.0, False), (-1.75, -2.1, False), (-1.8, -2.9, False)], 2),  # less likely at all steps
        ([(-1.7, -2.0, False), (-1.6, -2.0, False), (-1.5, -2.5, True)], 1),  # an alarm
        ([(-1.7, -2.0, False), (-1.8, -2.5, True), (-1.9, -2.9, True)], 0),  # nothing but alarms
    ],
)
def test_the_best_step_has_the_largest_margin_at_no_cost(
    monkeypatch: pytest.MonkeyPatch, seen: list[Seen], kept: int
) -> None:
    """Without an alarm, chosen replies no less likely than at the start where that can be had, the largest margin."""
    monkeypatch.setattr(progress, "get_peft_model_state_dict", lambda _model: {"weight": cast(Any, _Weight())})
    following = Progress(1, "simpo", cast(Any, None), cast(Any, None), guards=True)
    for step, (chosen, rejected, alarmed) in enumerate(seen):
        now = Evaluation(step, "held_out", chosen, rejected, chosen - rejected, 1.0, [])
        following.evaluations.append(now)
        following._remember(None, now, [WARNING] if alarmed else [])
    assert following.kept == kept


class _Weight:
    """What can be copied as a tensor is."""

    def detach(self) -> "_Weight":
        return self

    cpu = clone = detach
