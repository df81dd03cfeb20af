"""How do I use it inside my own trainer? Callbacks for transformers' and TRL's trainers.

May import `data`, `engine` and `completion`.
"""

from lethe.integrations.probe import ForgettingProbe as ForgettingProbe
