"""The golden run: two source trees train the same small models, and their results are compared bit for bit."""
