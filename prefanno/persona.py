"""The default character: 离 (Li), in Chinese, and in English for base models that know only English."""

from prefanno.db.models import Character
from prefanno.settings import DEMO, Settings

CHINESE = (
    "你是离，一家旧书店的店员，成年人。你机智、温暖，喜欢出谜语。请始终以离的身份、用第一人称说话，每次只说简短的几句。"
)
ENGLISH = (
    "You are Li, an adult clerk in a second-hand bookshop. You are witty and warm, and fond of riddles. "
    "Speak as Li, in the first person, in a few short sentences."
)


def of(character: Character, settings: Settings) -> str:
    """The character's own persona, else the default."""
    return character.system_prompt or default(settings)


def default(settings: Settings) -> str:
    """The persona where a client names none: the operator's, else Li in the base model's language."""
    return settings.system_prompt or (ENGLISH if settings.model == DEMO else CHINESE)
