"""The golden run: two source trees train the same small models, and every bit of the results is compared."""
