"""How does the call of a script become a process? Logs, errors, warm start, several processes.

May import `engine.devices`. Only workflow scripts import this wing.
"""
