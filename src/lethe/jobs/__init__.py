"""How does the call of a script become a process? Logs, errors, warm start, several processes.

May import `engine.devices`. Only rules and workflow scripts import this wing.
"""
