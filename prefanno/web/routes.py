"""Every route, in one table."""

from aiohttp import web

from prefanno.web import dataset, docs, generation, health, model, training

ROUTES = [
    web.get("/health", health.show),
    web.post("/api/model/load", model.load),
    web.post("/api/model/unload", model.unload),
    web.get("/api/model/status", model.status),
    web.post("/api/generate", generation.generate),
    web.post("/api/dataset/add", dataset.add),
    web.get("/api/dataset/stats", dataset.stats),
    web.get("/api/dataset/list", dataset.show),
    web.post("/api/train/start", training.start),
    web.post("/api/train/stop", training.stop),
    web.get("/api/train/status", training.status),
    web.get("/ws/train/logs", training.logs),
    web.get("/openapi.json", docs.openapi),
    web.get("/docs", docs.show),
    web.get("/docs/{name}", docs.asset),
    web.get("/", docs.home),
]
