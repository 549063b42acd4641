"""Every route, in one table."""

from aiohttp import web

from prefanno.web import annotations, characters, conversations, dataset, docs, generation, health, model, training

ROUTES = [
    web.get("/health", health.show),
    web.post("/api/model/load", model.load),
    web.post("/api/model/unload", model.unload),
    web.get("/api/model/status", model.status),
    web.post("/api/generate", generation.generate),
    web.post("/api/dataset/add", dataset.add),
    web.get("/api/dataset/stats", dataset.stats),
    web.get("/api/dataset/list", dataset.show),
    web.post("/api/choices", annotations.choose),
    web.get("/api/annotations", annotations.search),
    web.get(r"/api/annotations/{id:[0-9]+}", annotations.read),
    web.get(r"/api/annotations/{id:[0-9]+}/history", annotations.show_history),
    web.post(r"/api/annotations/{id:[0-9]+}/edit", annotations.edit),
    web.post("/api/annotations/delete", annotations.delete),
    web.post("/api/annotations/restore", annotations.restore),
    web.post("/api/history/undo", annotations.undo),
    web.post("/api/history/redo", annotations.redo),
    web.get("/api/conversations", conversations.show),
    web.get(r"/api/conversations/{id:[0-9]+}", conversations.read),
    web.get("/api/characters", characters.show),
    web.post("/api/characters", characters.create),
    web.post("/api/characters/{slug}/edit", characters.edit),
    web.post("/api/characters/{slug}/select", characters.select),
    web.post("/api/train/start", training.start),
    web.post("/api/train/stop", training.stop),
    web.get("/api/train/status", training.status),
    web.get("/ws/train/logs", training.logs),
    web.get("/openapi.json", docs.openapi),
    web.get("/docs", docs.show),
    web.get("/docs/{name}", docs.asset),
    web.get("/", docs.home),
]
