import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.config import Config
from hive_core.domain.dead import MAX_DELIVERIES, is_dead, one_line
from hive_core.domain.helper_event import MessageDead, render_body


def test_the_number_stands_in_the_configuration() -> None:
    assert Config().broker.max_deliveries == MAX_DELIVERIES


def test_a_message_dies_of_the_last_failure_that_it_may_have() -> None:
    assert [is_dead(attempts, 3) for attempts in range(5)] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("reason", "shown"), [("two\nlines\x1b[31m", "two lines [31m"), (" \t ", "no reason was given")]
)
def test_a_reason_is_one_line_without_control_characters(reason: str, shown: str) -> None:
    assert one_line(reason) == shown


@given(st.text())
def test_any_reason_can_be_told(reason: str) -> None:
    body = render_body(MessageDead(agent="alice", id=7, reason=one_line(reason)))

    assert msgspec.json.decode(body)["event"] == "message_dead"
    assert "\n" not in one_line(reason)
