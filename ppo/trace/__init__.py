"""One PPO update shown token by token: as an object, as text for the terminal, and as one HTML page.

:meth:`ppo.Trainer.trace` makes a :class:`Trace`. :func:`render_trace_text` and :func:`render_trace_page` show it.
"""

from .page import render_trace_page
from .records import Alternative, MinibatchTrace, RowTrace, StateTrace, TokenTrace, TokenUpdate, Trace
from .states import StatesTold
from .text import render_trace_text
from .update import trace_update

__all__ = [
    "Alternative",
    "MinibatchTrace",
    "RowTrace",
    "StateTrace",
    "StatesTold",
    "TokenTrace",
    "TokenUpdate",
    "Trace",
    "render_trace_page",
    "render_trace_text",
    "trace_update",
]
