"""What follows from a choice: ranks, pairs, unpaired replies, and what is refused."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno.annotation import choices
from prefanno.annotation.choices import VERDICTS, Pair, Reply, Unpaired
from prefanno.errors import InvalidInput
from tests.properties import unhurried

Groups = list[list[int]]
Rule = Callable[[str, Sequence[Reply], float], list[Pair]]

ABC = [Reply(text, f"about {text}", candidate=ordinal) for ordinal, text in enumerate("abc", 1)]
WEIGHTS = st.floats(0.01, 100)


def _candidates(number: int) -> list[Reply]:
    return [Reply(f"reply {ordinal}", None, None, ordinal) for ordinal in range(1, number + 1)]


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[Reply], Groups]:
    """Two to ten candidates, and an order of two or more of them, with ties."""
    candidates = _candidates(draw(st.integers(2, 10)))
    ordinals = draw(st.permutations([reply.candidate or 0 for reply in candidates]))
    judged = ordinals[: draw(st.integers(2, len(ordinals)))]
    groups = [[judged[0]]]
    for ordinal in judged[1:]:
        if draw(st.booleans()):
            groups.append([ordinal])
        else:
            groups[-1].append(ordinal)
    return candidates, groups


@st.composite
def decided(draw: st.DrawFn) -> tuple[str, list[Reply]]:
    """A verdict, and the replies as `decide` ranked them."""
    candidates, groups = draw(rankings())
    verdict = draw(st.sampled_from(VERDICTS))
    said: dict[str, Any] = {"chosen": groups[0][0]} if verdict in ("best", "good", "edit") else {}
    said |= {"ranking": groups} if verdict == "ranking" else {}
    said |= {"content": "better", "thinking": draw(st.none() | st.just("hm"))} if verdict == "edit" else {}
    return verdict, choices.decide(verdict, candidates, **said)


def faults(rule: Rule, replies: Sequence[Reply], groups: Groups, weight: float) -> set[str]:
    """What is wrong with the pairs that the rule makes of a ranking; the order is read from the groups themselves."""
    pairs = rule("ranking", replies, weight)
    place = {ordinal: number for number, group in enumerate(groups) for ordinal in group}
    made = Counter((pair.chosen.candidate or 0, pair.rejected.candidate or 0) for pair in pairs)
    due = {(a, b) for a, b in product(place, place) if place[a] < place[b]}
    beaten = {rejected for _, rejected in made}
    best = choices.best("ranking", replies)
    found = {
        "contradiction": any(place.get(a, 0) > place.get(b, 0) for a, b in made),
        "tie": any(place.get(a) == place.get(b) for a, b in made),
        "not judged": any(a not in place or b not in place for a, b in made),
        "missing": bool(due - set(made)),
        "twice": any(count > 1 for count in made.values()),
        "weight": bool(pairs) and not math.isclose(sum(pair.weight for pair in pairs), weight),
        "best beaten": best is None or best.candidate in beaten,
    }
    return {name for name, wrong in found.items() if wrong}


@unhurried
@given(rankings(), WEIGHTS)
def test_pairs_say_what_the_ranking_says(ranking: tuple[list[Reply], Groups], weight: float) -> None:
    """Each two strictly ordered replies give one pair, in their order, of equal shares; ties and unjudged give none."""
    candidates, groups = ranking
    replies = choices.decide("ranking", candidates, ranking=groups)
    assert faults(choices.pairs, replies, groups, weight) == set()
    pairs = choices.pairs("ranking", replies, weight)
    assert len({pair.weight for pair in pairs}) <= 1
    best = choices.best("ranking", replies)
    assert best is not None and best.candidate in groups[0]
    assert len(groups) == 1 or pairs[0].chosen == best


def _with(change: Callable[[Pair], Pair]) -> Rule:
    return lambda verdict, replies, weight: [change(pair) for pair in choices.pairs(verdict, replies, weight)]


def _tied(verdict: str, replies: Sequence[Reply], weight: float) -> list[Pair]:
    """Also each over those of its own rank."""
    tied = [(a, b) for a, b in combinations(replies, 2) if a.rank == b.rank is not None]
    return [*choices.pairs(verdict, replies, weight), *(Pair(a, b, 0.0) for a, b in tied)]


def _eager(verdict: str, replies: Sequence[Reply], weight: float) -> list[Pair]:
    """Those who are not judged are taken for the worst."""
    return choices.pairs(verdict, [reply._replace(rank=reply.rank or 99) for reply in replies], weight)


WRONG: list[tuple[str, Rule]] = [
    ("contradiction", _with(lambda pair: pair._replace(chosen=pair.rejected, rejected=pair.chosen))),
    ("best beaten", _with(lambda pair: pair._replace(chosen=pair.rejected, rejected=pair.chosen))),
    ("tie", _tied),
    ("not judged", _eager),
    ("missing", lambda verdict, replies, weight: choices.pairs(verdict, replies, weight)[1:]),
    ("twice", lambda verdict, replies, weight: 2 * choices.pairs(verdict, replies, weight / 2)),
    ("weight", _with(lambda pair: pair._replace(weight=1.0))),
]


@pytest.mark.parametrize(("fault", "rule"), WRONG, ids=[fault for fault, _ in WRONG])
def test_a_wrong_rule_is_found_out(fault: str, rule: Rule) -> None:
    """Control: the check of the property above names the fault of each wrong rule."""
    groups = [[2], [1, 3], [4]]
    replies = choices.decide("ranking", _candidates(5), ranking=groups)
    assert fault in faults(rule, replies, groups, 1.0)
    assert faults(choices.pairs, replies, groups, 1.0) == set()


@unhurried
@given(decided(), WEIGHTS)
def test_what_holds_for_every_verdict(choice: tuple[str, list[Reply]], weight: float) -> None:
    """`check` takes what `decide` made; pairs and unpaired never both; each weighs the choice's weight; best wins."""
    verdict, replies = choice
    choices.check(verdict, replies)
    pairs, unpaired = choices.pairs(verdict, replies, weight), choices.unpaired(verdict, replies, weight)
    assert not (pairs and unpaired)
    for found in (pairs, unpaired):
        assert not found or math.isclose(sum(one.weight for one in found), weight)
    if verdict in ("bad", "skip", "good"):
        assert pairs == []
    best = choices.best(verdict, replies)
    assert (best is None) == (verdict in ("bad", "skip"))
    assert all(pair.rejected != best for pair in pairs)


# verdict, what is said, the ranks, the pairs by content, the unpaired as "+content" or "-content"
TABLE: list[tuple[str, dict[str, Any], list[int | None], list[str], list[str]]] = [
    ("best", {"chosen": 2}, [2, 1, 2], ["b>a", "b>c"], []),
    ("ranking", {"ranking": [[2], [1, 3]]}, [2, 1, 2], ["b>a", "b>c"], []),
    ("ranking", {"ranking": [[3], [1], [2]]}, [2, 3, 1], ["c>a", "c>b", "a>b"], []),
    ("ranking", {"ranking": [[3], [1]]}, [2, None, 1], ["c>a"], []),
    ("ranking", {"ranking": [[1, 2, 3]]}, [1, 1, 1], [], []),
    ("edit", {"chosen": 3, "content": "d"}, [1, 2], ["d>c"], []),
    ("edit", {"chosen": 1, "content": "a", "thinking": "d"}, [1, 2], ["a>a"], []),  # only its thinking is another
    ("edit", {"chosen": 3, "content": "c", "thinking": "d"}, [1, 2], ["c>c"], []),
    ("good", {"chosen": 1}, [1, None, None], [], ["+a"]),
    ("bad", {}, [None, None, None], [], ["-a", "-b", "-c"]),
    ("skip", {}, [None, None, None], [], []),
]


@pytest.mark.parametrize(("verdict", "said", "ranks", "pairs", "unpaired"), TABLE)
def test_each_verdict_gives_what_the_table_says(
    verdict: str, said: dict[str, Any], ranks: list[int | None], pairs: list[str], unpaired: list[str]
) -> None:
    """Ranks, pairs with the best reply's first, and unpaired replies follow as documented."""
    replies = choices.decide(verdict, ABC, **said)
    assert [reply.rank for reply in replies] == ranks
    found = choices.pairs(verdict, replies)
    assert [f"{pair.chosen.content}>{pair.rejected.content}" for pair in found] == pairs
    alone = choices.unpaired(verdict, replies)
    assert [("+" if one.good else "-") + one.reply.content for one in alone] == unpaired
    choices.check(verdict, replies)


def test_several_good_replies_are_good_each() -> None:
    """Every reply of rank 1 is good by itself, with a share of the weight; the one not judged is not."""
    replies = [reply._replace(rank=rank) for reply, rank in zip(ABC, (1, None, 1), strict=True)]
    assert choices.unpaired("good", replies, 3.0) == [Unpaired(replies[0], True, 1.5), Unpaired(replies[2], True, 1.5)]


def test_deciding_changes_nothing_but_ranks() -> None:
    """Content, thinking and ordinal stay; an edited reply is no candidate, and the original keeps all it was."""
    for verdict, said, *_ in TABLE:
        if verdict != "edit":
            assert [reply._replace(rank=None) for reply in choices.decide(verdict, ABC, **said)] == ABC
    edited = choices.decide("edit", ABC, chosen=2, content="d", thinking="hm")
    assert edited == [Reply("d", "hm", 1, None), ABC[1]._replace(rank=2)]


NEEDS = {"best": {"chosen"}, "good": {"chosen"}, "ranking": {"ranking"}, "edit": {"chosen", "content"}}
SAID: dict[str, Any] = {"chosen": 1, "ranking": [[1], [2]], "content": "d", "thinking": "hm"}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_what_is_missing_or_of_no_use_is_named(verdict: str) -> None:
    """Of all that can be said together, `decide` names just the fields that are missing, and those of no use."""
    needed, allowed = NEEDS.get(verdict, set()), {"thinking"} if verdict == "edit" else set()
    for number in range(len(SAID) + 1):
        for names in combinations(SAID, number):
            said = {name: SAID[name] if name in names else None for name in SAID}
            wrong = (needed - set(names)) | (set(names) - needed - allowed)
            if not wrong:
                choices.decide(verdict, ABC, **said)
                continue
            with pytest.raises(InvalidInput) as refused:
                choices.decide(verdict, ABC, **said)
            assert set(refused.value.fields) == wrong


@pytest.mark.parametrize(
    ("verdict", "said", "field"),
    [
        *((verdict, {"chosen": ordinal}, "chosen") for verdict in ("best", "good") for ordinal in (0, 4, -1)),
        ("edit", {"chosen": 4, "content": "d"}, "chosen"),
        ("edit", {"chosen": 1, "content": "a", "thinking": "about a"}, "content"),
        ("ranking", {"ranking": [[1], [4]]}, "ranking"),
        ("ranking", {"ranking": [[1], [0]]}, "ranking"),
        ("ranking", {"ranking": [[1], [2], [1]]}, "ranking"),
        ("ranking", {"ranking": [[1, 1]]}, "ranking"),
        ("ranking", {"ranking": [[1]]}, "ranking"),
        ("ranking", {"ranking": []}, "ranking"),
        ("ranking", {"ranking": [[], []]}, "ranking"),
    ],
)
def test_a_refusal_names_its_field(verdict: str, said: dict[str, Any], field: str) -> None:
    """An ordinal that is unknown or comes twice, an order of fewer than two, an edit that changes nothing: refused."""
    with pytest.raises(InvalidInput) as refused:
        choices.decide(verdict, ABC, **said)
    assert list(refused.value.fields) == [field]


CHECKED: list[tuple[str, list[list[int | None]], list[list[int | None]]]] = [  # verdict, fitting, not fitting
    ("best", [[1, 2], [2, 1, 2]], [[], [1], [2, 2], [1, 1], [1, 2, None], [1, None], [1, 3], [1, 1, 2]]),
    ("ranking", [[1, 2], [1, 1], [None, 2, 1], [3, 1, 2, 2]], [[], [1], [1, None], [1, 3], [2, 3], [2, 2], [0, 1]]),
    ("edit", [[1, 2], [2, 1]], [[], [1], [1, 1], [1, 2, 2], [1, 2, None], [1, 3], [None, None]]),
    ("good", [[1], [1, None], [None, 1, 1]], [[], [None], [1, 2], [2]]),
    ("bad", [[None], [None, None]], [[], [1], [None, 2]]),
    ("skip", [[None], [None, None]], [[1], [1, 2], [None, 1]]),
]


@pytest.mark.parametrize(("verdict", "fitting", "unfitting"), CHECKED)
def test_ranks_must_be_those_of_the_verdict(
    verdict: str, fitting: list[list[int | None]], unfitting: list[list[int | None]]
) -> None:
    """`check` takes ranks as the table has them, and refuses all others, naming the replies."""
    for ranks in fitting:
        choices.check(verdict, [Reply("a", rank=rank) for rank in ranks])
    for ranks in unfitting:
        with pytest.raises(InvalidInput) as refused:
            choices.check(verdict, [Reply("a", rank=rank) for rank in ranks])
        assert list(refused.value.fields) == ["replies"]
