import os
import signal

from hypothesis import settings

# A slow machine is no bug, and this suite is for every `make test`.
settings.register_profile("hive", deadline=None, max_examples=150)
settings.load_profile("hive")

# A shell lets what it runs in the background ignore SIGINT, and with it all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Else every daemon that is started would compile all of its modules again: that is half of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
