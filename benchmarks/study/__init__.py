"""The lab study: what each ingredient of DeMem adds, and how forgetting goes with size, repetition and shape."""
