#!/usr/bin/env bash
# Trains one adapter. It is yours to change: prefanno starts it in the run's folder, without arguments.
#
#   config.json        in:  base model, stages, hyperparameters, seed
#   data/*.json        in:  the exported choices
#   adapter/           out: the adapter, as peft saves it
#   metrics.jsonl      out: one JSON object for each thing that was measured
#   summary.json       out: what came of each stage
#
# What it prints becomes the run's log. Exit code 0 publishes adapter/; anything else, and the run has failed.
set -euo pipefail

export PYTHONUNBUFFERED=1
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}" # one GPU: the recipe is one process
exec "${PYTHON:-python3}" -P -m prefanno.training.recipe config.json
