"""The default character."""

from prefanno import persona, text
from prefanno.settings import Settings


def test_the_operators_persona_comes_first() -> None:
    """PREFANNO_SYSTEM_PROMPT replaces the default, whatever the model."""
    for model in ("demo", "some/model"):
        assert persona.default(Settings(model=model, system_prompt="Be brief.")) == "Be brief."


def test_li_speaks_the_models_language() -> None:
    """The demo model, which knows only English, gets the English persona; any other the Chinese one."""
    assert persona.default(Settings(model="demo")) == persona.ENGLISH
    assert persona.default(Settings(model="some/model")) == persona.CHINESE


def test_both_texts_describe_the_same_character() -> None:
    """Name, trade, age and fondness of riddles are in both, and both can be stored."""
    for words, description in (
        (("离", "旧书店", "成年人", "谜语"), persona.CHINESE),
        (("Li", "second-hand bookshop", "adult", "riddles"), persona.ENGLISH),
    ):
        assert all(word in description for word in words)
        assert text.fault(description) is None
