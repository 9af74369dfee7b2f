"""A login program as an agent's command line has one: an address, a code, credentials.

stub_login.py CREDENTIALS [MODE]: "good" wants the code 4f2a; "page" needs none and ends by itself once
CREDENTIALS.page is there; "silent" says nothing; "dead" ends at once.
"""

import os
import sys
import time
from pathlib import Path

credentials = Path(sys.argv[1])
mode = sys.argv[2] if sys.argv[2:] else "good"
Path(f"{credentials}.pid").write_text(str(os.getpid()))
if mode == "dead":
    print("\x1b[31mno such account\x1b[0m", flush=True)
    sys.exit(3)
if mode == "silent":
    time.sleep(600)
print("Opening a browser … If it does not open, visit:\n", flush=True)
# In two pieces, and without anything behind it.
sys.stdout.write("\x1b]8;;https://login.example/oauth?code=true&state=ab")
sys.stdout.flush()
time.sleep(0.05)
sys.stdout.write("c_-%2F~123")
sys.stdout.flush()
if mode == "page":
    while not Path(f"{credentials}.page").exists():
        time.sleep(0.05)
    credentials.write_text("{}")
    sys.exit(0)
sys.stdout.write("\x07here\x1b]8;;\x07\n\nPaste the code > ")
sys.stdout.flush()
for line in sys.stdin:
    if line.strip() == "4f2a":
        credentials.write_text("{}")
        print("Login successful.")
        sys.exit(0)
    print("\x1b[1mInvalid code.\x1b[0m Paste the code > ", end="", flush=True)
