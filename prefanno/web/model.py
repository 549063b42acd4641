"""Loading, unloading, and what is loaded."""

from dataclasses import asdict
from typing import Any

from aiohttp import web

from prefanno.generation.model import gpu_memory
from prefanno.keys import LOOP
from prefanno.web import answers
from prefanno.web.endpoint import done, endpoint
from prefanno.web.fields import Nothing
from prefanno.web.schemas import LoadSchema


@endpoint(
    "Load the model", body=LoadSchema, body_required=False, answer=answers.Loaded, failures=(409, 503), keyed=False
)
async def load(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Load with these settings; a field left out has its default, also on a second load."""
    character, adapter = body.pop("character"), body.pop("adapter")
    loaded = await request.app[LOOP].load(body, character, adapter)
    message = f"模型加载成功，使用adapter: {loaded.adapter}" if loaded.adapter else "模型加载成功，未使用adapter"
    data = {"adapter_path": loaded.adapter, "config": asdict(loaded.config), "character": loaded.character}
    return done(message, data)


@endpoint("Unload the model", body=Nothing, body_required=False, answer=answers.Done)
async def unload(request: web.Request, _body: dict[str, Any]) -> web.Response:
    """Free the model's memory; also a success with nothing loaded."""
    await request.app[LOOP].unload()
    return done("模型已卸载，显存已释放")


@endpoint("What is loaded", answer=answers.ModelStatus)
async def status(request: web.Request) -> web.Response:
    """The engine's state, its settings and the GPU's memory."""
    loop = request.app[LOOP]
    engine = loop.engine
    state, loaded, progress = engine.state, engine.loaded, engine.progress
    return done(
        state,
        {
            "model_loaded": state == "loaded",
            "model_loading": state == "loading",
            "config": asdict(loaded.config) if loaded else None,
            "gpu_info": gpu_memory(),
            "base_model": loop.settings.model,
            "adapter": loaded.adapter if loaded else None,
            "character": loaded.character if loaded else None,
            "device": loaded.device if loaded else None,
            "context_length": loaded.context_length if loaded else None,
            "failure": engine.failure.detail if engine.failure else None,
            "queue": asdict(engine.queue),
            "progress": {"phase": progress.phase, "fraction": progress.fraction, "elapsed_s": progress.elapsed_s}
            if progress
            else None,
            "comparison": loop.comparing.answering,
        },
    )
