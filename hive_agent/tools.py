"""What a turn may do in the hive."""

import hashlib

from hive_agent.link import Calls
from hive_core.wire.agent import Send, Sent


class Tools:
    """The tools of one turn, which works on message *message_id*."""

    def __init__(self, link: Calls, message_id: int) -> None:
        self._link = link
        self._message_id = message_id
        self._sends = 0

    async def send(self, to: str, body: str, in_reply_to: int | None = None) -> int:
        """Send a message and give its id, when it is on disk.

        A turn that was cut off and runs again may well say the same again: the n-th send of a turn with
        the same words carries the same key, so that it arrives once.

        Raises:
            Refused: the daemon said no.
        """
        self._sends += 1
        said = f"{self._message_id}\0{self._sends}\0{to}\0{in_reply_to}\0{body}"
        key = hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()[:32]
        send = Send(to=to, body=body, in_reply_to=in_reply_to, idempotency_key=key)
        return (await self._link.call(send, Sent)).id
