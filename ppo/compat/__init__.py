"""The names of other libraries on top of this one, so that old scripts run by changing an import."""
