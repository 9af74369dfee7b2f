"""Every number that a peer can run into.  A refusal names the one it ran into."""

from typing import Final

PROTOCOL: Final = 1
"""Version of the frames; a hello that says another one is refused."""

HOST_VERSION: Final = 1
"""`version` of every line on host.sock.  It changes only when a field is removed, renamed or
retyped: third-party clients refuse anything above 1 before they look at `ok`."""

MAX_FRAME_BYTES: Final = 2**24 - 1
"""Largest payload of a frame: its length never has a first byte other than 0x00, which is how the
agent socket tells frames from JSON."""

SMALL_FRAME_BYTES: Final = 2**20
"""Frames above this are taken from one connection of an agent at a time."""

MAX_REQUEST_BYTES: Final = 384 * 2**10
"""One request of an agent.  Whatever it is, it becomes objects in one go while everybody else waits: as many
empty maps as fit into that take 50 ms."""

MAX_LINE_BYTES: Final = 2**20
"""Longest line on host.sock, without its newline."""

MAX_OUT_BYTES: Final = 4 * 2**20
"""What may wait in one connection's out-buffer before the connection is dropped."""

MAX_OPEN_CALLS: Final = 64
"""Calls and streams that are open at once, per connection of an agent."""

MAX_OPEN_STREAMS: Final = 8
"""Streams among them."""

MAX_BODY_BYTES: Final = 64 * 2**10
"""A message body in UTF-8.  A bigger text belongs in a file whose path is sent."""

MAX_RECV_SECONDS: Final = 180.0
"""A recv that wants to wait longer waits this long."""

MAX_RECV_MESSAGES: Final = 32
"""Messages leased by one recv."""

MAX_ROWS: Final = 1000
"""Rows in one answer of inbox, messages, recent, events."""

MAX_STATUS_CHARS: Final = 200
"""What an agent shows on its row."""

MAX_LABEL_CHARS: Final = 64
"""Names of sources, kinds of events, models: one line without control characters."""

MAX_KEY_CHARS: Final = 200
"""An idempotency key."""

MAX_CODE_CHARS: Final = 4096
"""What a person pastes to finish a login."""

MAX_PUBLISH_EVENTS: Final = 64
"""Events in one publish."""

MAX_EVENT_BYTES: Final = 256 * 2**10
"""One event's payload as JSON.  The harness cuts longer strings and says so in the payload."""

MAX_EVENT_DEPTH: Final = 100
"""Nesting of one event's payload.  The encoders recurse, and Python's own limit is 1000 frames in all."""

MAX_LOG_LINES: Final = 1000
"""Lines in one answer of logs."""

MAX_PATH_CHARS: Final = 1024
"""The name of an image, or the path of a closure."""

MIN_TASKS: Final = 64
"""Below that no machine boots."""

MAX_TASKS: Final = 4194304
"""The kernel's own limit of processes."""

MAX_QUESTION_BYTES: Final = 8 * 2**10
"""A question in UTF-8."""

MAX_ANSWER_BYTES: Final = 32 * 2**10
"""Its answer: the two of them travel in one message."""

MAX_OPTIONS: Final = 32
"""Options of a question."""

MAX_OPTION_CHARS: Final = 200
"""One of them."""

MAX_QUESTION_TTL_S: Final = 6 * 3600.0
"""How long a question may wait for its answer, when it does not wait for ever."""

MAX_OPEN_QUESTIONS: Final = 100
"""Of one asker."""

MAX_REMINDERS: Final = 50
"""Pending, of one agent."""

MAX_REMINDER_BYTES: Final = 4 * 2**10
"""A longer reminder comes as a file, and the message names its path."""

MAX_REMINDER_DELAY_S: Final = 366 * 86400.0
"""How far away a reminder may be."""

MAX_QUERY_CHARS: Final = 1000
"""What is typed to search for."""

MAX_ALLOWED: Final = 256
"""Names on the list of those that an agent may write to."""

MAX_DEAD_REASON_CHARS: Final = 500
"""Why a message was set aside."""

MAX_SET_ASIDE: Final = MAX_RECV_MESSAGES
"""Messages that a harness sets aside at once: it has no more in hand."""

MAX_NOTE_CHARS: Final = 2000
"""Of the description of a request for approval, or of the note of a decision."""

MAX_INPUTS: Final = 32
"""Inputs of the hive's flake in one request."""
