"""The recipe: one adapter from the choices in a run's folder, by TRL, with LoRA. It runs alone: `__main__` says how."""
