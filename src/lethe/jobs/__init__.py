"""How does the call of a script become a process? Logs, errors, warm start, several processes.

May import `config`, and the devices of `engine`. Only profiles, rules, workflow scripts and `cli`
import this wing.
"""
