"""The pictures of results/ and docs/, drawn from measured points."""
