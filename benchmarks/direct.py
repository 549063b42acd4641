"""The demo model in this process, a long prompt, and timing by turns: what the benchmarks of generation share."""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from prefanno import settings
from prefanno.generation import base_model
from prefanno.generation.batch import Batch
from prefanno.generation.config import GenerationConfig, Request
from prefanno.generation.model import LocalModel
from prefanno.generation.writing import Row
from prefanno.prompting import Message

ROUNDS = 5
REST_S = 0.3  # what the work before left behind has ended then
ROWS = 4
CONFIG = GenerationConfig(
    "You are Li, a witty clerk in a second-hand bookshop.", enable_thinking=False, num_responses=ROWS
)
SAMPLING = {name: getattr(CONFIG, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
NEVER = 15  # "<jupyter_script>" to the demo model: no text has it
TEXTS = Path(__file__).parent / "taste_data" / "pairs.json"


def machine() -> str:
    """What the figures are from: processor, cores, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers"))
    name = names[0] if names else platform.processor()
    return f"{os.cpu_count()} × {name}, Python {platform.python_version()}, {versions}"


def demo() -> Path:
    """The folder of the demo model, converted where that was not done yet."""
    return Path(base_model.resolve(settings.read({})))


def endless(folder: Path) -> Path:
    """The demo model as one that never ends a turn, and samples as prefanno by default: so every peer writes alike."""
    for file in demo().iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copy(file, folder)
    never = {"eos_token_id": [NEVER], "pad_token_id": NEVER}
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, **SAMPLING, **never}))
    return folder


def prompt(model: LocalModel, tokens: int, question: str = "Who are you?") -> list[int]:
    """The tokens of a question after a conversation in the shop, persona and template included: about so many."""
    for turns in range(1000):
        prompt = model.prompt(Request(question, talk(turns), 0, CONFIG))
        if len(prompt) >= tokens:
            break
    return prompt


def talk(turns: int) -> list[Message]:
    """So many questions and Li's answers, as a context."""
    pairs = cycle(json.loads(TEXTS.read_text()))
    return [
        message
        for pair in islice(pairs, turns)
        for message in (
            Message(role="user", content=pair["human_input"]),
            Message(role="assistant", content=pair["chosen"]),
        )
    ]


def rows(model: LocalModel, config: GenerationConfig, count: int, seed: int = 0) -> list[Row]:
    """Rows to be written."""
    return [Row(model.vocabulary, config, ordinal, 1000 * seed + ordinal) for ordinal in range(1, count + 1)]


def write(model: LocalModel, prompts: Iterable[tuple[Sequence[int], list[Row]]]) -> None:
    """Write the rows of all prompts in one batch, as the engine's thread does."""
    batch = Batch(model.weights, model.vocabulary.ends)
    for tokens, wanted in prompts:
        batch.add(tokens, wanted)
    while batch.is_going:
        batch.step()


def by_turns(
    works: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """The seconds of each, done in turn, so that noise hits all alike; a round before that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(0 if warm_up else 1, rounds + 1):
        for name, work in works.items():
            time.sleep(REST_S)
            started = time.perf_counter()
            work()
            if number:
                taken[name].append(time.perf_counter() - started)
                print(f"{name}: {taken[name][-1]:.2f} s", file=sys.stderr, flush=True)  # a long run may be cut off
    return taken
