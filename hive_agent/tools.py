"""What a turn may do in the hive."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from hive_agent.link import Calls
from hive_core.wire import agent


class Tools:
    """The tools of one turn, which works on message *message_id*.

    A turn that was cut off and runs again may well do the same again: its n-th call of a tool with the same
    words carries the same key, so that it counts once.
    """

    def __init__(self, link: Calls, message_id: int) -> None:
        self._link = link
        self._message_id = message_id
        self._uses: Counter[str] = Counter()

    async def send(self, to: str, body: str, in_reply_to: int | None = None) -> int:
        """Send a message and give its id, when it is on disk.

        Raises:
            Refused: the daemon said no.
        """
        key = self._key("send", to, str(in_reply_to), body)
        send = agent.Send(to=to, body=body, in_reply_to=in_reply_to, idempotency_key=key)
        return (await self._link.call(send, agent.Sent)).id

    async def ask(self, to: str, question: str, options: Sequence[str] = ()) -> int:
        """Ask an agent or the operator, and give the id of the question, when it is on disk.

        Raises:
            Refused: the daemon said no.
        """
        key = self._key("ask", to, question, *options)
        ask = agent.Ask(to=to, question=question, options=list(options), idempotency_key=key)
        return (await self._link.call(ask, agent.Asked)).id

    async def answer(self, question_id: int, answer: str) -> None:
        """Answer a question.

        Raises:
            Refused: the daemon said no.
        """
        key = self._key("answer", str(question_id), answer)
        await self._link.call(agent.Answer(id=question_id, answer=answer, idempotency_key=key), agent.Done)

    async def remind(self, message: str, delay_s: float) -> int:
        """Leave a reminder that comes in *delay_s* seconds, and give its id.

        Raises:
            Refused: the daemon said no.
        """
        key = self._key("remind", str(delay_s), message)
        remind = agent.Remind(message=message, delay_seconds=delay_s, idempotency_key=key)
        return (await self._link.call(remind, agent.Reminded)).id

    def _key(self, tool: str, *words: str) -> str:
        self._uses[tool] += 1
        said = "\0".join([str(self._message_id), str(self._uses[tool]), *words])
        return hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()[:32]
