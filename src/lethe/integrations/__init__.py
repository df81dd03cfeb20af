"""How do I use it in my own trainer? Callbacks for the trainers of transformers and TRL.

May import `config`, `data`, `engine`, `matrix`, `completion` and `replay`.
"""

from lethe.integrations.chat_rows import labelled_chats as labelled_chats
from lethe.integrations.probe import ForgettingProbe as ForgettingProbe
from lethe.integrations.rehearsal import Rehearsal as Rehearsal
