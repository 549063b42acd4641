"""What a run tells while it trains: a line in the log and an object in metrics.jsonl for each step and evaluation.

`kind` is "step", "evaluation", "probe" or "alarm". Log-probabilities and the margin between them are means in nats for
each token, for every method; docs/training.md describes each field.
"""

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import TrainerCallback

from prefanno.training.recipe import guard
from prefanno.training.recipe.evaluation import Evaluator
from prefanno.training.recipe.forward import Scorer
from prefanno.training.recipe.guard import Alarm, Evaluation, Probe

METRICS = Path("metrics.jsonl")
EVALUATIONS, APART = 6, 8  # in a stage, beside the one before its first step; steps between them at least
MEGABYTE = 1 << 20


def say(text: str) -> None:
    """Print a line of the log."""
    print(text, flush=True)


def record(kind: str, values: Mapping[str, Any]) -> None:
    """Write an object to metrics.jsonl."""
    with METRICS.open("a") as file:
        file.write(json.dumps({"kind": kind, **values}, ensure_ascii=False) + "\n")


class Progress(TrainerCallback):
    """Follows one stage; with `guards` it stops one that breaks the model, and `kept` is the step to go back to.

    So it does, too, where only the end is worth a warning and an earlier step was not. The best step is, among those
    without an alarm, the one whose chosen replies are the likeliest compared with the rejected ones; one whose chosen
    replies are less likely than at the start only where all are. Without any it is the start.
    """

    def __init__(self, number: int, method: str, evaluator: Evaluator, scorer: Scorer, *, guards: bool) -> None:
        self._about = {"stage": number, "method": method}
        self._evaluator, self._scorer, self._guards = evaluator, scorer, guards
        self._started = self._since = time.monotonic()
        self._elsewhere = 0.0  # seconds that evaluations took
        self._tokens = 0
        self.evaluations: list[Evaluation] = []
        self.stopped: Alarm | None = None
        self.kept = 0
        self.best: dict[str, Tensor] = {}  # the weights of the step that is kept
        self._best_score = (False, float("-inf"))
        self._first = 0  # the step that this program went on from

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_kwargs: Any) -> None:
        """Measure where the stage begins; one that goes on was measured then."""
        del args, control
        if not self.evaluations:
            self._evaluate(state, model)
        self._started = self._since = time.monotonic()
        self._elsewhere, self._first = 0.0, state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_kwargs: Any) -> None:
        """Tell of a step."""
        del args
        if not logs or "loss" not in logs:
            return
        now = time.monotonic()
        step_s = (now - self._started - self._elsewhere) / (state.global_step - self._first)
        left = step_s * (state.max_steps - state.global_step)
        values = {
            "step": state.global_step,
            "steps": state.max_steps,
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
            "gradient_norm": float(logs.get("grad_norm", 0.0)),
            **self._scorer.metrics(),
        }
        values |= self._pace(now) | {"seconds_left": round(left, 1), "memory_mb": memory_mb()}
        record("step", self._about | storable(values))
        shown = " · ".join(f"{name} {values[name]:.3g}" for name in SHOWN if isinstance(values.get(name), int | float))
        say(f"{self._about['method']} step {state.global_step}/{state.max_steps} · {shown} · {left:.0f} s left")
        if alarm := guard.not_a_number(state.global_step, values["loss"]):  # also without the guard: all is lost
            self._tell(alarm, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_kwargs: Any) -> None:
        """Measure where it is time to."""
        del args
        interval = max(APART, -(-state.max_steps // EVALUATIONS))
        is_due = state.global_step % interval == 0 and state.max_steps - state.global_step >= APART
        if not is_due and state.global_step != state.max_steps:
            return
        for alarm in self._evaluate(state, model):
            if self._guards:
                self._tell(alarm, state, control)

    def restore(self, model: Any) -> None:
        """Go back to the best step."""
        set_peft_model_state_dict(model, self.best)

    def state(self) -> dict[str, Any]:
        """What `take_up` takes, beside the weights: JSON, as Python writes it."""
        evaluations = [asdict(one) for one in self.evaluations]
        return {"evaluations": evaluations, "kept": self.kept, "best_score": self._best_score}

    def take_up(self, state: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        """Go on from what another program had measured."""
        for said in state["evaluations"]:
            probes = [Probe(**probe) for probe in said["probes"]]
            self.evaluations.append(Evaluation(**{**said, "probes": probes}))
        is_likelier, margin = state["best_score"]
        self.kept, self.best, self._best_score = state["kept"], best, (is_likelier, margin)

    def pause(self, seconds: float) -> None:
        """So many seconds went into something else than a step."""
        self._elsewhere += seconds
        self._since += seconds

    def _evaluate(self, state: Any, model: Any) -> list[Alarm]:
        began = time.monotonic()
        now = self._evaluator.evaluate(state.global_step)
        self.evaluations.append(now)
        found = list(guard.alarms(self.evaluations, self._evaluator.usual_length))
        self._remember(model, now, found)
        values = asdict(now)
        probes = values.pop("probes")
        record("evaluation", self._about | storable(values))
        for probe in probes:
            record("probe", self._about | {"step": now.step} | storable(probe))
        self.pause(time.monotonic() - began)
        return found

    def _remember(self, model: Any, now: Evaluation, found: list[Alarm]) -> None:
        score = (False, float("-inf"))  # of the start
        if len(self.evaluations) > 1:
            start = self.evaluations[0].chosen_logp
            is_likelier = now.chosen_logp is None or start is None or now.chosen_logp >= start
            score = is_likelier, (now.chosen_logp or 0.0) - (now.rejected_logp or 0.0)
        if not self.best or (not found and score > self._best_score):
            self._best_score, self.kept = score, now.step
            weights = get_peft_model_state_dict(model)
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _tell(self, alarm: Alarm, state: Any, control: Any) -> None:
        record("alarm", self._about | {"step": state.global_step} | asdict(alarm))
        at_end = state.global_step == state.max_steps
        goes_back = (alarm.stops or at_end) if self.kept else (alarm.stops and alarm.code != "overfits")
        say(
            f"guard: {alarm.text}"
            + (f"; stopped, step {self.kept} is kept" if goes_back else " (a warning; the run goes on)")
        )
        if goes_back and self.stopped is None:
            self.stopped = alarm
            control.should_training_stop = True

    def _pace(self, now: float) -> dict[str, float]:
        """The seconds since the last step, without evaluations, and the tokens learnt from in each of them."""
        tokens, since = self._scorer.tokens - self._tokens, now - self._since
        self._tokens, self._since = self._scorer.tokens, now
        return {"seconds": round(since, 3), "tokens_per_second": round(tokens / max(since, 1e-9), 1)}


SHOWN = ("loss", "learning_rate", "accuracy", "margin", "chosen_logp", "rejected_logp")


def memory_mb() -> int:
    """The most memory that was held so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() / MEGABYTE)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE)


def storable(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: what is no number is written as a text that says so."""
    return {
        name: str(value) if isinstance(value, float) and value - value != 0 else value for name, value in values.items()
    }
