"""Several processes that train one model, and its weights split among them."""

from .errors import LostProcessError, OtherProcessError, OutOfStepError
from .processes import Processes, process_group

__all__ = ["LostProcessError", "OtherProcessError", "OutOfStepError", "Processes", "process_group"]
