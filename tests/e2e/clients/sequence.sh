#!/usr/bin/env bash
# The curl sequence: trains on a single pair.
set -euo pipefail
base=$1

json() { curl -fsS -X POST "$base$1" -H 'Content-Type: application/json' -d "$2"; echo; }

curl -fsS "$base/health"; echo
json /api/model/load '{"num_responses": 2, "max_new_tokens": 64}'
json /api/generate '{"message": "你是谁？"}'
json /api/dataset/add '{"mode": "single", "human_input": "你是谁？", "chosen": "我叫离，是这家旧书店的店员~", "rejected": "我是一个AI助手。"}'
curl -fsS "$base/api/dataset/stats"; echo
curl -fsS -X POST "$base/api/model/unload"; echo
curl -fsS -X POST "$base/api/train/start"; echo
while curl -fsS "$base/api/train/status" | grep -q '"running": true'; do sleep 0.5; done
curl -fsS "$base/api/train/status" | grep -o '"state": "[a-z]*"'
