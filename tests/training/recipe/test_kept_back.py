"""Which prompts a run holds out, and which it is trained on, as a comparison reads it."""

from pathlib import Path

import pytest

from prefanno.training import held_out
from prefanno.training.held_out import Asked, key
from prefanno.training.recipe import kept_back
from prefanno.training.recipe.examples import of_row
from prefanno.training.recipe.preflight import Checked
from tests.tiny import CHATML
from tests.training.recipe.rows import PERSONA, row, template


def test_a_comparison_reads_what_the_recipe_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are held out come with persona and context; of those trained on, of all stages, the keys."""
    monkeypatch.chdir(tmp_path)
    context = [{"role": "user", "content": "离"}, {"role": "assistant", "content": "嗯"}]
    rows = [row("x", "y", said=said) for said in ("a", "b")]
    talk = row("x", None, said="c", context=context, mode="multi")
    pairs = [example for one in rows for example in of_row(1, one, "simpo", template(CHATML))]
    turns = list(of_row(1, talk, "sft", template(CHATML)))
    stages = [Checked(turns), Checked(pairs)]
    kept_back.write(stages, frozenset({pairs[0].key, turns[-1].key}))
    found = held_out.read(tmp_path)
    by_message = {asked.message: asked for asked in found.held_out}
    assert by_message == {"a": Asked(PERSONA, [], "a"), "c": Asked(PERSONA, context, "c")}  # type: ignore[arg-type]
    assert found.trained == {key("b", []), key("离", [])}
