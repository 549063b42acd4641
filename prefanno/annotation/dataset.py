"""A character's annotations: add, choose, edit, delete, restore, read. Each takes the session of one transaction."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import choices, history
from prefanno.annotation.choices import Reply
from prefanno.db import annotations, generations, prompts
from prefanno.db.annotations import Choice
from prefanno.db.models import Annotation, Generation
from prefanno.errors import Conflict, InvalidInput
from prefanno.prompting import Message
from prefanno.rows import Mode, Row

Side = tuple[Mode, Reply | None, Reply | None, float]  # of a row: mode, chosen, rejected, weight


async def add(session: AsyncSession, character: str, row: Row) -> Annotation:
    """Store a choice that came as texts.

    A thinking that the client left out is looked up among the recent candidates with that text.
    """
    annotation = to_annotation(character, await _with_thinking(session, character, row))
    await history.add(session, [annotation])
    return annotation


async def choose(session: AsyncSession, generation: int, verdict: str, **said: Any) -> tuple[Annotation, bool]:
    """Store a choice among a generation's candidates; a second one takes the place of the first, as an edit of it.

    Returns the annotation and whether it is another than before. `said` is what `choices.decide` takes, and reasons,
    note and annotator. Raises NotFound or InvalidInput.
    """
    turn = await generations.get(session, generation)
    await prompts.decide(session, generation)
    about = {name: said.pop(name) for name in ("reasons", "note", "annotator")}
    found = await generations.candidates(session, [generation])
    candidates = [Reply(one.content, one.thinking, candidate=one.ordinal) for one in found]
    replies = history.stored(choices.decide(verdict, candidates, **said))
    known = await annotations.of_generation(session, generation)
    if known is not None:
        fields = {"verdict": verdict, "replies": replies, **about, history.DELETED: False}
        return known, await history.change_one(session, "choose", known, fields, about["annotator"])
    annotation = _of_turn(turn, verdict, replies, about)
    await history.add(session, [annotation], "choose", about["annotator"])
    return annotation, True


async def edit(session: AsyncSession, number: int, fields: dict[str, Any]) -> Annotation:
    """Change fields of an annotation. Raises NotFound, Conflict where it is deleted, InvalidInput.

    `annotator` is both: the new value of the field, and who makes this change.
    """
    annotation = await annotations.get(session, number)
    if annotation.deleted_at is not None:
        raise Conflict(f"annotation {number} is deleted; restore it first", f"标注 {number} 已删除，请先恢复")
    verdict = fields.get("verdict", annotation.verdict)
    replies = [Reply(**reply) for reply in fields.get("replies", annotation.replies)]
    choices.check(verdict, replies)
    known = {reply.candidate for reply in history.replies(annotation)}
    named = [reply.candidate for reply in replies if reply.candidate is not None]
    if not known.issuperset(named) or len(set(named)) < len(named):
        raise InvalidInput({"replies": ["candidate 只能是该标注已有的候选，且各出现一次"]})
    await history.change_one(session, "edit", annotation, fields, fields.get("annotator"))
    return annotation


async def set_deleted(session: AsyncSession, numbers: Sequence[int], deleted: bool) -> int:
    """Delete or restore these annotations in one step; return how many were not so before.

    Raises NotFound; InvalidInput where they are not of one character, since each has a history of its own.
    """
    owners: set[str] = set()

    async def changes() -> AsyncIterator[list[history.Change]]:
        async for part in annotations.parts(session, numbers):
            owners.update(annotation.character for annotation in part)
            if len(owners) > 1:
                raise InvalidInput({"ids": [f"属于不同角色（{'、'.join(sorted(owners))}），请分别操作"]})
            yield [(annotation, {history.DELETED: deleted}) for annotation in part]

    return await history.change(session, "delete" if deleted else "restore", changes())


def to_annotation(character: str, row: Row) -> Annotation:
    """The row as the table holds it."""
    rows = ((row.chosen, row.chosen_thinking, 1), (row.rejected, row.rejected_thinking, 2))
    replies = [Reply(content, thinking, rank) for content, thinking, rank in rows if content is not None]
    verdict = "best" if len(replies) == 2 else "good" if row.rejected is None else "bad"  # noqa: PLR2004 - both sides
    if verdict == "bad":
        replies = [reply._replace(rank=None) for reply in replies]
    return Annotation(
        character=character,
        mode=row.mode,
        system_prompt=row.system_prompt,
        context=[dict(turn) for turn in row.context],
        human_input=row.human_input,
        verdict=verdict,
        replies=history.stored(replies),
        weight=row.weight,
        created_at=row.created_at,
    )


def to_rows(annotation: Annotation | Choice, whole: bool) -> list[Row]:
    """What training gets from the annotation: its pairs and its unpaired replies.

    In multi mode `whole` says that no later turn goes on from here: then the best reply ends a whole conversation, with
    the reply that it is better than first. All else is single, with the earlier turns as context.
    """
    if annotation.verdict == "best" and annotation.mode == "single" and len(annotation.replies) == 2:  # noqa: PLR2004
        return [_pair(annotation)]
    replies = history.replies(annotation)
    found = _sides(annotation, replies)
    if annotation.mode == "multi" and whole and (best := choices.best(annotation.verdict, replies)) is not None:
        _, _, rejected, weight = found[0] if found else ("", None, None, annotation.weight)
        found[:1] = [("multi", best, rejected, weight)]
    return [_row(annotation, *side) for side in found]


def _pair(annotation: Annotation | Choice) -> Row:
    """What the rules below give for the best of two, without them: most choices are, and an export has millions."""
    first, second = annotation.replies
    chosen, rejected = (first, second) if first["rank"] == 1 else (second, first)
    return Row(
        "single",
        annotation.system_prompt,
        cast(list[Message], annotation.context),
        annotation.human_input,
        chosen["content"],
        chosen["thinking"],
        rejected["content"],
        rejected["thinking"],
        annotation.created_at,
        annotation.weight,
    )


def _sides(annotation: Annotation | Choice, replies: Sequence[Reply]) -> list[Side]:
    pairs = choices.pairs(annotation.verdict, replies, annotation.weight)
    if pairs:
        return [("single", pair.chosen, pair.rejected, pair.weight) for pair in pairs]
    return [
        ("single", one.reply if one.good else None, None if one.good else one.reply, one.weight)
        for one in choices.unpaired(annotation.verdict, replies, annotation.weight)
    ]


def sides(annotation: Annotation | Choice) -> tuple[Reply | None, Reply | None]:
    """The best reply, and the first that it is better than: the choice as one pair."""
    replies = history.replies(annotation)
    pairs = choices.pairs(annotation.verdict, replies)
    return choices.best(annotation.verdict, replies), pairs[0].rejected if pairs else None


def _of_turn(turn: Generation, verdict: str, replies: list[dict[str, Any]], about: dict[str, Any]) -> Annotation:
    return Annotation(
        character=turn.character,
        mode=turn.settings["mode"],
        system_prompt=turn.settings["system_prompt"],
        context=turn.context,
        human_input=turn.message,
        verdict=verdict,
        replies=replies,
        adapter=turn.adapter,
        generation_id=turn.id,
        **about,
    )


def _row(
    annotation: Annotation | Choice, mode: Mode, chosen: Reply | None, rejected: Reply | None, weight: float
) -> Row:
    return Row(
        mode=mode,
        system_prompt=annotation.system_prompt,
        context=cast(list[Message], annotation.context),
        human_input=annotation.human_input,
        chosen=chosen.content if chosen else None,
        chosen_thinking=chosen.thinking if chosen else None,
        rejected=rejected.content if rejected else None,
        rejected_thinking=rejected.thinking if rejected else None,
        weight=weight,
        created_at=annotation.created_at,
    )


async def _with_thinking(session: AsyncSession, character: str, row: Row) -> Row:
    bare = {
        side: getattr(row, side)
        for side in ("chosen", "rejected")
        if getattr(row, side) and not getattr(row, f"{side}_thinking")
    }
    if not bare:
        return row
    thoughts = await generations.thinking_of(session, character, set(bare.values()))
    found: dict[str, Any] = {f"{side}_thinking": thoughts.get(content) for side, content in bare.items()}
    return replace(row, **found)
