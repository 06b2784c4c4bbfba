"""What ``demem.py`` is made of: its options, a run, the recipe, the commands beside the method."""
