"""The schemas that validate requests about comparisons."""

from marshmallow import fields, validate

from prefanno.arena.comparisons import VOTES
from prefanno.matchup import COUNT
from prefanno.web.fields import REQUIRED, QueryWhole, StrictSchema, Text, Truth, Whole, at_most, between, one_of
from prefanno.web.prompt_schemas import SIZE, PromptSchema
from prefanno.web.schemas import LIST, MAX_ID, MAX_SEED, CharacterSchema

MOST = 200  # prompts of one comparison


class CompareSchema(CharacterSchema):
    """`POST /api/comparisons`; both adapters are the character's, or "base"."""

    adapter = Text(required=True, validate=at_most(200))
    against = Text(load_default=None, allow_none=False, validate=at_most(200))
    prompts = fields.List(
        fields.Nested(PromptSchema, error_messages=REQUIRED),
        load_default=None,
        allow_none=False,
        validate=validate.Length(min=1, max=MOST, error=SIZE),
        error_messages={**REQUIRED, **LIST},
    )
    count = Whole(load_default=COUNT, validate=between(1, MOST))
    seed = Whole(load_default=None, allow_none=False, validate=between(0, MAX_SEED))
    promote = Truth(load_default=False)


class ComparisonsSchema(CharacterSchema):
    """`GET /api/comparisons`."""

    limit = QueryWhole(load_default=20, validate=between(1, 1000))


class VoteSchema(StrictSchema):
    """`POST /api/comparisons/{id}/votes`."""

    round = Whole(required=True, validate=between(1, MAX_ID))
    vote = Text(required=True, validate=one_of(*VOTES))
    annotator = Text(load_default=None, allow_none=True, validate=at_most(100))
