"""The names of other libraries on top of this one, so that old scripts run after a change of one import."""
