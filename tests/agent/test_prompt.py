import pytest

from hive_agent.prompt import render_wake_prompt
from hive_core.domain.helper_event import HelperEvent

from .fakes import message


def test_a_plain_message_is_its_source_and_its_body() -> None:
    assert render_wake_prompt(message(7, "hi\nthere", "bob"), 0) == "Message 7 from bob:\n\nhi\nthere"


def test_an_answer_names_the_question() -> None:
    assert render_wake_prompt(message(7, "hi", "bob", in_reply_to=3), 0).startswith(
        "Message 7 from bob, in reply to message 3:"
    )


def test_more_that_waits_comes_with_the_way_to_get_it() -> None:
    assert render_wake_prompt(message(), 1).endswith(
        "(1 more message is pending: recv(max=1) hands them out now, or they come one by one.)"
    )
    assert "40 more messages are pending: recv(max=32)" in render_wake_prompt(message(), 40)


def test_what_may_have_been_handled_says_so() -> None:
    assert "may already have been handled" in render_wake_prompt(message(redelivered=True), 0)


def test_a_broadcast_may_need_nothing() -> None:
    assert "no action may be needed" in render_wake_prompt(message(broadcast=True), 0)


@pytest.mark.parametrize(
    ("sender", "hint"),
    [
        ("self", "You asked for this turn yourself"),
        ("system", "from the daemon"),
        ("reminder", "a reminder that you set"),
        ("mail from bob", "under a label that nobody can write to"),
        ("bash-task-12 (done)", "under a label that nobody can write to"),
    ],
)
def test_a_sender_that_is_no_agent_is_explained_and_its_label_stands_as_it_is(sender: str, hint: str) -> None:
    prompt = render_wake_prompt(message(7, "hi", sender), 0)

    assert prompt.startswith(f"Message 7 from {sender}:\n\nhi\n\n(")
    assert hint in prompt


@pytest.mark.parametrize("sender", ["operator", "manager", "bob"])
def test_a_sender_who_can_be_answered_is_not(sender: str) -> None:
    assert render_wake_prompt(message(7, "hi", sender), 0) == f"Message 7 from {sender}:\n\nhi"


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        ('{"event":"question_asked","id":7,"question":"Which?"}', "answer it with the tool answer"),
        ('{"event":"question_answered","id":7,"answer":"red"}', "the answer to a question that you asked"),
        ('{"event":"approval_resolved","id":7,"status":"denied"}', "Tell whoever wanted it"),
        ('{"event":"config_ready","agent":"bob"}', "request_spawn"),
        ('{"event":"rebuilt","agent":"bob","ok":false}', "note says why"),
        ('{"event":"agent_failed","agent":"bob"}', "from the daemon"),
        ('{"event":7}', "from the daemon"),
        ("[" * 10_000, "from the daemon"),
    ],
)
def test_what_the_daemon_tells_says_whether_an_answer_is_expected(body: str, hint: str) -> None:
    assert hint in render_wake_prompt(message(7, body, "system"), 0)


@pytest.mark.parametrize("event", HelperEvent.__subclasses__(), ids=lambda event: event.__name__)
def test_all_that_the_daemon_tells_of_agents_has_a_hint_of_its_own(event: type[HelperEvent]) -> None:
    body = f'{{"event":"{event.__struct_config__.tag}"}}'

    assert "no answer is expected" not in render_wake_prompt(message(7, body, "system"), 0)


def test_only_the_daemon_asks_in_the_name_of_others() -> None:
    body = '{"event":"question_asked","id":7,"question":"Which?"}'

    assert render_wake_prompt(message(7, body, "bob"), 0) == f"Message 7 from bob:\n\n{body}"
