"""Loading and unloading over HTTP."""

from tests.conftest import Client


async def test_a_load_without_a_body_has_every_default(client: Client) -> None:
    """A load without a body has every default."""
    answer = await client.post("/api/model/load")
    body = await answer.json()
    assert answer.status == 200, body
    assert body["message"] == "模型加载成功，未使用adapter"
    assert body["data"]["adapter_path"] is None
    assert body["data"]["config"]["num_responses"] == 4


async def test_generate_answers_with_as_many_candidates_as_asked_for(client: Client) -> None:
    """The loaded model answers with exactly num_responses candidates that are not empty."""
    await client.post("/api/model/load", json={"num_responses": 3, "max_new_tokens": 64})
    answer = await client.post("/api/generate", json={"message": "你是谁？", "seed": 7})
    body = await answer.json()
    assert answer.status == 200, body
    assert [candidate["id"] for candidate in body["responses"]] == [1, 2, 3]
    assert all(candidate["content"] for candidate in body["responses"])
