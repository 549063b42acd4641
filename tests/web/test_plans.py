"""What a run is asked to be over HTTP: stages, hyperparameters, a check before it, metrics after it, no injection."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from prefanno.keys import LOOP
from prefanno.training.methods import METHODS
from prefanno.web import training_answers as answers
from tests.conftest import Client
from tests.web.conftest import LASTING, PAIR, TALK, MakeTrainer, accepted, faults, refused, shared, until

START, CHECK, METRICS = "/api/train/start", "/api/train/check", "/api/train/metrics"
TOLD = r"""
printf '%s\n' "$0" "$#" "$@" > "$PWD/arguments"
mkdir adapter; touch adapter/adapter_config.json adapter/adapter_model.safetensors
echo '{"kind": "step", "step": 1}' > metrics.jsonl
echo '{"stages": [{"method": "simpo", "guard": "the replies repeat themselves", "kept_step": 8}]}' > summary.json
"""
INSIDE = (
    "$(touch {mark})",
    "`touch {mark}`",
    "; touch {mark}",
    "&& touch {mark}",
    "| touch {mark}",
    "\n touch {mark} \n",
    "> {mark}",
    "${{IFS}}touch${{IFS}}{mark}",
    "--config={mark}",
    "-c 'touch {mark}'",
    "'; touch {mark}; '",
    '"; touch {mark}; "',
    "%0Atouch {mark}",
    "../../../../{mark}",
    "/{mark}",
    "file://{mark}",
    "__import__('os').system('touch {mark}')",
    "{{{{ self.__init__.__globals__ }}}}{mark}",
    "!!python/object/apply:os.system [touch {mark}]",
    "'; DROP TABLE runs; --{mark}",
)
AROUND = ("{}", "li{}", "li-simpo-1{}", "{}li", "simpo{}", "--{}", "\\{}", "'{}'", "a=b{}", " {}")
of_the_body = pytest.mark.sqlite_only  # decided by what was sent, hardly by what is stored
PAYLOADS = [outer.format(inner) for inner, outer in itertools.product(INSIDE, AROUND)]


def _stage(**fields: Any) -> dict[str, Any]:
    return {"stages": [{"method": "simpo", **fields}]}


def _named(path: str, text: str) -> dict[str, Any]:
    """The body of a start with the text in the place of this field."""
    *outer, name = path.split(".")
    if not outer:
        return {name: text}
    if outer == ["lora"]:
        return {"lora": {name: text}}
    inside: dict[str, Any] = {name: text} if outer[-1] == "0" else {"hyperparameters": {name: text}}
    return _stage(**{"method": "dpo", **inside})


FIELDS = (
    *("character", "stages", "adapter", "lora", "max_length", "seed", "held_out", "guard"),
    *("activation_checkpointing", "rebuild", "resume", "unload_model", "reload_model", "lora.r", "lora.alpha"),
    *(f"stages.0.{name}" for name in ("method", "dataset", "hyperparameters")),
    *(f"stages.0.hyperparameters.{name}" for name in METHODS["dpo"].hyperparameters),
)


@of_the_body
@shared
@pytest.mark.parametrize("method", METHODS)
async def test_hyperparameters_are_held_to_their_bounds(standing: Client, method: str) -> None:
    """Each hyperparameter is refused beyond its bounds, or outside its choices, by name; one of another method too."""
    for name, one in METHODS[method].hyperparameters.items():
        bad = ["nonsense"] if one.choices else [one.low - 1, one.high + 1, str(one.default), None, True]
        for value in bad:
            named = await faults(await standing.post(START, json=_stage(method=method, hyperparameters={name: value})))
            assert named == {f"stages.0.hyperparameters.{name}"}, (name, value)
    for name in ("unheard_of", "gamma" if method != "simpo" else "label_smoothing"):
        named = await faults(await standing.post(START, json=_stage(method=method, hyperparameters={name: 1.0})))
        assert named == {f"stages.0.hyperparameters.{name}"}


@of_the_body
@shared
@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"stages": []}, {"stages"}),
        (_stage(method="ppo"), {"stages.0.method"}),
        (_stage(method="sft", dataset="nonsense"), {"stages.0.dataset"}),
        (_stage(method="simpo", dataset="roleplay"), {"stages.0.dataset"}),
        (_stage(method="dpo", hyperparameters={"loss": "exo_pair"}), {"stages.0.hyperparameters.label_smoothing"}),
        (_stage(method="dpo", hyperparameters={"label_smoothing": 0.1}), {"stages.0.hyperparameters.label_smoothing"}),
        (_stage(method="kto", hyperparameters={"batch_size": 1}), {"stages.0.hyperparameters.batch_size"}),
        (
            _stage(method="dpo", hyperparameters={"loss": "aot", "batch_size": 1}),
            {"stages.0.hyperparameters.batch_size"},
        ),
        (
            _stage(method="kto", hyperparameters={"desirable_weight": 0.0, "undesirable_weight": 0.0}),
            {"stages.0.hyperparameters.undesirable_weight"},
        ),
        ({"adapter": "li-simpo-1", "lora": {"r": 8}}, {"lora"}),
        ({"rebuild": 1, "seed": 2, "guard": False}, {"seed", "guard"}),
        ({"rebuild": 0}, {"rebuild"}),
        ({"resume": 1, "rebuild": 2}, {"resume", "rebuild"}),
        ({"resume": 0}, {"resume"}),
        ({"held_out": 0.6}, {"held_out"}),
    ],
)
async def test_a_plan_that_contradicts_itself_is_refused(
    standing: Client, body: dict[str, Any], fields: set[str]
) -> None:
    """The field is named; nothing is exported, and no run begins."""
    assert await faults(await standing.post(START, json=body)) == fields
    assert standing.app[LOOP].training.last_run is None


@pytest.mark.sqlite_only  # the rows are looked at in their files
async def test_a_check_reports_on_the_rows_and_starts_nothing(client: Client) -> None:
    """Beside a loaded model: the examples of each stage, what is left out and why, and what the run would take."""
    for body in (PAIR, PAIR | {"chosen": PAIR["rejected"]}, TALK, PAIR | {"chosen": "A.", "chosen_thinking": "Hm."}):
        await client.post("/api/dataset/add", json=body)
    await client.post("/api/model/load", json={"max_new_tokens": 64})
    data = (await accepted(await client.post(CHECK), answers.Checked))["data"]
    assert [(one["method"], one["rows"], one["examples"], one["counts"]) for one in data["stages"]] == [
        ("sft", 1, 1, {}),
        ("simpo", 3, 2, {"equal_sides": 1, "one_sided_thinking": 1}),
    ]
    assert data["ok"] and client.app[LOOP].training.last_run is None and client.app[LOOP].engine.state == "loaded"
    assert list(client.app[LOOP].settings.runs.iterdir()) == []
    asked = _stage(method="orpo", hyperparameters={"epochs": 2.0})
    data = (await accepted(await client.post(CHECK, json=asked), answers.Checked))["data"]
    assert [(one["method"], one["steps"]) for one in data["stages"]] == [("orpo", 2)]


@pytest.mark.sqlite_only  # likewise
async def test_a_check_that_finds_nothing_says_so(client: Client) -> None:
    """Where every row is left out the report says that nothing is left; without any row the check is refused."""
    await refused(await client.post(CHECK), 400, "没有可训练的数据")
    await client.post("/api/dataset/add", json=PAIR | {"chosen": PAIR["rejected"]})
    body = await accepted(await client.post(CHECK), answers.Checked)
    assert body["data"]["ok"] is False and body["message"].startswith("没有可训练的数据")


async def _ended(client: Client) -> dict[str, Any]:
    training = client.app[LOOP].training
    await until(lambda: training.last_run is not None and not training.running)
    last: dict[str, Any] = (await (await client.get("/api/train/status")).json())["data"]["last_run"]
    return last


async def test_what_a_run_measured_and_why_it_was_guarded(make_trainer: MakeTrainer) -> None:
    """Metrics come page by page, of the last run or a named one; why the guard stopped is the run's reason."""
    client = await make_trainer(TOLD)
    await refused(await client.get(METRICS), 404)
    await client.post(START)
    last = await _ended(client)
    assert (last["state"], last["adapter"]) == ("succeeded", "li-simpo-1")
    assert last["reason"] == "guard: the replies repeat themselves; step 8 of simpo was kept"
    first = (await accepted(await client.get(METRICS), answers.Metrics))["data"]
    assert first["run"] == 1 and first["items"] == [{"kind": "step", "step": 1}]
    after = {"run": "1", "after": str(first["next"])}
    assert (await accepted(await client.get(METRICS, params=after), answers.Metrics))["data"]["items"] == []
    await refused(await client.get(METRICS, params={"run": "9"}), 404)
    assert await faults(await client.get(METRICS, params={"after": "-1", "limit": "0"})) == {"after", "limit"}


@pytest.mark.sqlite_only  # it is about the engine's memory
async def test_unload_train_and_reload_in_one_call(make_trainer: MakeTrainer) -> None:
    """With a model loaded, one call trains; a run that makes no usable adapter leaves the server usable."""
    client = await make_trainer(LASTING)
    await client.post("/api/model/load", json={"max_new_tokens": 64, "temperature": 0.5})
    await refused(await client.post(START), 400, "请先卸载模型")
    answer = await client.post(START, json={"unload_model": True, "reload_model": True})
    assert answer.status == 200
    assert (await (await client.get("/api/model/status")).json())["message"] == "unloaded"
    await client.post("/api/train/stop")
    await until(lambda: client.app[LOOP].engine.state == "loaded")
    config = (await (await client.get("/api/model/status")).json())["data"]["config"]
    assert config["temperature"] == 0.5 and config["max_new_tokens"] == 64


@of_the_body
@shared
@pytest.mark.parametrize("field", FIELDS)
async def test_no_field_of_a_start_takes_a_payload(standing: Client, field: str) -> None:
    """200 texts that would do harm in a shell, a path, a template or SQL: each is refused in each field."""
    assert len(set(PAYLOADS)) == 200
    await standing.post("/api/dataset/add", json=PAIR)
    for payload in PAYLOADS:
        named = await faults(await standing.post(START, json=_named(field, payload.format(mark="mark"))))
        assert all(field.startswith(name.rsplit(".", 1)[0]) or name.startswith(field) for name in named), named
    assert standing.app[LOOP].training.last_run is None


async def test_what_is_annotated_never_reaches_a_shell(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """With 200 payloads in the texts, the persona and the thoughts, train.sh has the same arguments: none.

    The texts stand in the data and nowhere else, and nothing of them is executed.
    """
    client = await make_trainer(TOLD)
    mark = tmp_path / "executed"
    for payload in PAYLOADS:
        text = payload.format(mark=mark)
        body = PAIR | dict.fromkeys(("human_input", "chosen", "chosen_thinking"), text)
        assert (await client.post("/api/dataset/add", json=body)).status == 200, text
    await client.post("/api/characters/li/edit", json={"system_prompt": PAYLOADS[0].format(mark=mark)})
    for plan in ({}, _stage(method="dpo", hyperparameters={"beta": 0.5}), {"seed": 7, "max_length": 99}):
        assert (await client.post(START, json=plan)).status == 200
        run = await _ended(client)
        folder = client.app[LOOP].settings.runs / str(run["id"])
        assert run["state"] == "succeeded"
        script = str(client.app[LOOP].settings.train_script)
        assert await asyncio.to_thread((folder / "arguments").read_text) == f"{script}\n0\n"
        assert str(mark) not in (folder / "config.json").read_text()
        assert str(mark) in json.dumps(json.loads((folder / "data" / "li_preference.json").read_text()))
    assert not mark.exists()
