"""What DeMem is compared with: other ways to make a model forget, in training and while decoding.

Training-time methods share one signature: ``unlearn(model, passages, retain, *, training, generator, …) -> log``, with
one dict per step in the log. Decoding-time methods change how text is generated and leave the model unchanged.
"""
