"""The parts of ``benchmarks.cost_model``: what one PPO step of this library costs, computed from shapes alone."""
