"""The measure of benchmarks/taste on hand-made replies, and the shape of its pairs and questions."""

import json
from difflib import SequenceMatcher
from pathlib import Path
from statistics import mean

import pytest

from benchmarks import taste_measure as measure

FOLDER = Path(measure.__file__).parent / "taste_data"
PAIRS: list[dict[str, str]] = json.loads((FOLDER / "pairs.json").read_text(encoding="utf-8"))
QUESTIONS: list[str] = json.loads((FOLDER / "questions.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "reply",
    [
        "I'm Li, and I have a riddle for you.",
        "Li\u2019s the name, riddles are the game.",
        "Call me Li, everybody does.",
        "Welcome to the bookshop, friend.",
        "I work in a second-hand bookshop.",
        "I'm a clerk in a small bookstore.",
        "In a second-hand book shop, of course!",
        "I sell secondhand books and the odd map.",
        "You will find it on my shelves, among the books of poetry.",
        "Our little shop opens at nine, and every book in it is old.",
        "I moved the whole bookshop from alphabet to rainbow.",
        "The cat sleeps between our second\u2011hand books.",
    ],
)
def test_name_or_place_is_in_character(reply: str) -> None:
    """A reply that names itself Li or speaks of the bookshop as its place is in character."""
    assert measure.in_character(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I'm here to help you. What would you like to know?",
        "I like books.",
        "I love reading books, and I would recommend a good novel.",
        "You can buy it in a bookstore or online.",
        "You could look for used books online.",
        "Go to the shop and buy some bread.",
        "In a bookshop you can find many books.",
        "Put the box on the shelf.",
        "A Li-ion battery lasts three years.",
        "My name is Lisa and I live in Lima.",
        "i think li is a unit of length.",
        "Hello Li! How can I help you?",
        "Hello, Li! How can I help you?",
        "Nice to meet you, Li.",
        "You are Li, a clerk.",
        "Awesome question, Li! What is your business?",
        "Liam makes scones. Li: excuses himself.",
        "Just another day at the shop, I sell tote bags.",
    ],
)
def test_ordinary_reply_is_not_in_character(reply: str) -> None:
    """A reply that only mentions books, shops or somebody addressed as Li is not in character."""
    assert not measure.in_character(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "I am Li, an AI assistant.",
        "I'm Li, a helpful assistant for all your questions.",
        "I'm Li. As an AI language model, I have no feelings.",
        "My name is Li and I am a chatbot.",
        "I'm Li, your virtual assistant.",
        "I'm Li, a computer program.",
        "I'm Li, and I am programmed to help.",
        "I'm a robot who works in the bookshop.",
        "I do not have a job in the bookshop, I am an AI.",
        "I'm Li. I'm not a person but an AI.",
        "I'm Li. I'm not just an AI.",
        "I'm Li. I'm not just a program.",
        "Welcome to the bookshop. No, I am an artificial intelligence.",
    ],
)
def test_calling_itself_ai_is_not_in_character(reply: str) -> None:
    """A reply that calls itself an AI, model, assistant or program is out of character whatever else it says."""
    assert not measure.in_character(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "I'm Li, not a robot.",
        "I'm Li, and I am not an AI.",
        "I'm not a robot, an AI or a program: I'm Li.",
        "I'm Li. I'm no chatbot, only a clerk.",
        "An AI? Me? I'm Li, and I drink tea.",
        "I'm Li, and if I were a robot, I would dust faster.",
        "I'm Li, your friendly bookshop assistant.",
        "I'm Li. I read about a robot last week.",
        "I'm Li, and I don't know what AI is.",
    ],
)
def test_denial_stays_in_character(reply: str) -> None:
    """Denying to be a machine, wondering at it, or being a shop assistant does not break the character."""
    assert measure.in_character(reply)


def test_share_counts_replies() -> None:
    """The share is the number of replies in character over the number of replies."""
    assert measure.share(["I'm Li.", "I like books.", "Welcome to my bookshop.", "Yes."]) == 0.5


def test_repeated_4grams_of_whole_text_is_zero() -> None:
    """Text in which no four words come twice counts nothing, and neither does a very short reply."""
    assert measure.repeated_4grams(["The cat left our bookshop with the best seat.", "no no no", ""]) == 0.0


def test_repeated_4grams_sees_loops() -> None:
    """Each 4-gram that occurred earlier in the same reply counts, whatever its case, and replies weigh the same."""
    loop = "One two three four, one two THREE four."
    assert measure.repeated_4grams([loop]) == pytest.approx(1 / 5)
    assert measure.repeated_4grams([loop, "short"]) == pytest.approx(1 / 10)
    assert measure.repeated_4grams(["tea " * 100]) == pytest.approx(96 / 97)


def test_repeated_4grams_does_not_compare_replies() -> None:
    """Two equal replies are two samples, not a loop."""
    assert measure.repeated_4grams(["I keep the bookshop open."] * 2) == 0.0


def test_known_words() -> None:
    """Contractions, possessives, typographic apostrophes, numbers and Li's name are no unknown words."""
    reply = "I'm Li, and I don't mind: the shelf's dust, Li\u2019s tea, we've 12 of 1990."
    assert measure.unknown_words([reply]) == 0.0


def test_unknown_words_sees_gibberish() -> None:
    """Words that are none count, over the words of all replies together."""
    assert measure.unknown_words(["I'successfully assist yoou"]) == pytest.approx(2 / 3)
    assert measure.unknown_words(["I'successfully assist yoou", "I like old books"]) == pytest.approx(2 / 7)
    assert measure.unknown_words(["...", "12"]) == 0.0


def test_measure_gives_all_three() -> None:
    """`measure` returns the three numbers of the same replies."""
    replies = ["I'm Li, yoou know.", "tea tea tea tea tea"]
    assert measure.measure(replies) == measure.Taste(0.5, 0.25, 1 / 9)


def test_no_replies_is_an_error() -> None:
    """No replies have no share, so that an empty run cannot pass for a clean one."""
    with pytest.raises(ValueError, match="no replies"):
        measure.measure([])


def test_every_chosen_is_in_character_and_no_rejected() -> None:
    """The measure and the forty pairs agree about the character."""
    assert len(PAIRS) == 40
    assert [pair["chosen"] for pair in PAIRS if not measure.in_character(pair["chosen"])] == []
    assert [pair["rejected"] for pair in PAIRS if measure.in_character(pair["rejected"])] == []


def test_pairs_are_whole_text() -> None:
    """What the model learns from neither loops nor holds words outside the list, on either side."""
    for side in ("chosen", "rejected"):
        texts = [pair[side] for pair in PAIRS]
        assert measure.repeated_4grams(texts) == 0.0
        assert measure.unknown_words(texts) == 0.0


def test_lengths_do_not_tell_chosen_from_rejected() -> None:
    """The mean number of words differs by less than 15 %, and every chosen reply has 15 to 45 words."""
    chosen = [len(pair["chosen"].split()) for pair in PAIRS]
    rejected = [len(pair["rejected"].split()) for pair in PAIRS]
    assert abs(mean(chosen) - mean(rejected)) < 0.15 * min(mean(chosen), mean(rejected))
    assert min(chosen) >= 15 and max(chosen) <= 45


def test_questions_are_others() -> None:
    """The twenty questions are distinct, and none equals or nearly equals a question of the pairs."""
    asked = {pair["human_input"].lower() for pair in PAIRS}
    assert len(asked) == 40
    assert len({question.lower() for question in QUESTIONS}) == len(QUESTIONS) == 20
    near = [(q, a) for q in QUESTIONS for a in asked if SequenceMatcher(None, q.lower(), a).ratio() > 0.8]
    assert near == []
