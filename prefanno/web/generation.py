"""Candidates for a message."""

from typing import Any

from aiohttp import web

from prefanno.keys import LOOP
from prefanno.web import answers
from prefanno.web.endpoint import endpoint, reply
from prefanno.web.schemas import GenerateSchema


@endpoint("Candidates for a message", body=GenerateSchema, answer=answers.Generated, failures=(503, 507))
async def generate(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Exactly `num_responses` candidates; a thought only where it is enabled and shown."""
    generated, generation = await request.app[LOOP].generate(**body)
    shown = generated.loaded.config.enable_thinking and generated.loaded.config.show_thinking
    responses = [
        {"id": ordinal, **({"thinking": reply.thinking} if shown and reply.thinking else {}), "content": reply.content}
        for ordinal, reply in enumerate(generated.replies, 1)
    ]
    conversation = generation.conversation_id
    return reply(
        {
            "responses": responses,
            "generation_id": str(generation.id),
            "seed": generation.seed,
            "conversation_id": None if conversation is None else str(conversation),
        }
    )
