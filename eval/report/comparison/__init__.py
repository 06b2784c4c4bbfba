"""The page of a comparison: forgetting against utility, a curve for each method."""
