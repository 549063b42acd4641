"""Comparisons over HTTP: replies of both sides, blind votes, pairs, the verdict, promotion."""

from pathlib import Path

import pytest

from prefanno.keys import LOOP
from tests import tiny
from tests.conftest import Client
from tests.web.comparing import COMPARISONS, begun, ended, following, for_adapter, load, made, rounds, standing, vote
from tests.web.conftest import counts, refused

# peft asks transformers by a name that it has given up; neither is ours
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tiny_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the tiny model."""
    return tiny.adapt(tmp_path_factory.mktemp("adapters") / "adapter", tiny_model)


async def test_a_comparison_from_start_to_verdict(client: Client, tiny_adapter: Path) -> None:
    """Both sides answer each prompt, votes become pairs of the preferred reply, and the verdict follows."""
    made(client, 1, tiny_adapter)
    await load(client, adapter="base")
    number = await begun(client)
    data = await ended(client, number)
    assert (data["state"], data["reason"], data["adapter"], data["against"]) == ("open", None, "li-simpo-1", "base")
    assert data["progress"] == {"prompts": 3, "answered": 3, "replies": 6, "left_out": 0}
    assert (data["win_rate"], data["verdict"], data["message"]) == (None, "undecided", "尚无投票，无法判断")
    for left, choice in ((3, "left"), (2, "right"), (1, "tie")):
        one = await following(client, number)
        assert one["remaining"] == left
        voted = await vote(client, number, one["round"], choice)
        assert (voted["data"]["id"] is None) == (choice == "tie")
    assert await counts(client) == (2, 0)
    await refused(await client.get(f"{COMPARISONS}/{number}/next"), 409, "对比 1 没有可投票的轮次")
    data = await standing(client, number)
    assert sum(data["votes"].values()) == 3 and data["votes"]["tied"] == 1
    assert client.app[LOOP].engine.loaded and client.app[LOOP].engine.loaded.adapter is None
    assert [one.vote for one in await rounds(client)][2] == "tie"
    assert await for_adapter(client, 1) in ("left", "right")
