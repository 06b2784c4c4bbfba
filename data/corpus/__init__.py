"""Text files of any common kind as documents, and documents as tokens that know where they stand."""
