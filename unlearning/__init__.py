"""The parts of ``demem.py``: its options, a run, the recipe, and the commands beside the method."""
