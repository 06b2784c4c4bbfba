"""What DeMem is compared with: other ways to make a model forget, in training and while decoding.

Training-time methods share one signature: ``unlearn(model, passages, retain, *, training, generator, …) -> log``, one
dict a step. Decode-time ones change how text comes out of an unchanged model.
"""
