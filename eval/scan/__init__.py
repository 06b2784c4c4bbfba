"""What has a model memorised of a corpus? Texts as tokens in, findings with exact ends out.

A text is cut into *passes*: a forward pass each, with a prefix that is only given and tokens that are scored. What the
model recites of them grows into spans; controls say which of these it could have written without having seen them.
"""
