"""The requests script: one preference, one conversation, one run."""

import sys
import time
from typing import Any

import requests

BASE = sys.argv[1]


def post(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """POST as scripts do; without a body there is no Content-Type."""
    answer = requests.post(f"{BASE}{path}", json=body, timeout=300)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def main() -> None:
    """Load, generate, choose, train, wait."""
    post("/api/model/load", {"mode": "single", "num_responses": 4, "temperature": 0.85, "max_new_tokens": 64})
    answer = requests.post(f"{BASE}/api/generate", json={"message": "你是谁？", "context": []}, timeout=300).json()
    best, other = answer["responses"][:2]
    choice = {"mode": "single", "human_input": "你是谁？", "chosen": best["content"], "rejected": other["content"]}
    print(post("/api/dataset/add", {**choice, "chosen_thinking": best.get("thinking"), "context": []}))
    context = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": best["content"]}]
    print(
        post("/api/dataset/add", {"mode": "multi", "human_input": "真的吗？", "chosen": "真的。", "context": context})
    )
    print(requests.get(f"{BASE}/api/dataset/stats", timeout=30).json()["data"])
    post("/api/model/unload")
    print(post("/api/train/start"))
    while requests.get(f"{BASE}/api/train/status", timeout=30).json()["data"]["running"]:
        time.sleep(0.5)
    print(requests.get(f"{BASE}/api/train/status", timeout=30).json()["data"]["last_run"]["state"])


main()
