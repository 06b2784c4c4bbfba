"""Text files of any common kind as documents, and documents as windows of tokens that know where they stand."""
