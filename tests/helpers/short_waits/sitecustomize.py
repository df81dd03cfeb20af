"""On PYTHONPATH, this shortens every wait: the hub's client waits 23 seconds for a lost hub."""

import time

_sleep = time.sleep
time.sleep = lambda seconds: _sleep(min(seconds, 0.1))
