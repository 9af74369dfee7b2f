from hive_core.domain.deploy import AFTER_A_KILL, ENDED, ORDER, Step, tag_of


def test_every_step_that_is_no_end_has_one_after_it_and_one_to_go_on_with() -> None:
    assert ORDER.keys() == AFTER_A_KILL.keys() == set(Step) - ENDED


def test_every_way_leads_to_an_end_and_each_step_comes_once() -> None:
    for first in ORDER:
        step, seen = first, [first]
        while step not in ENDED:
            step = ORDER[step]
            assert step not in seen
            seen.append(step)
        assert step is (Step.FAILED if first is Step.ABORTING else Step.DONE)


def test_a_new_daemon_never_skips_what_was_not_done() -> None:
    places = list(Step)
    for step, goes_on in AFTER_A_KILL.items():
        assert goes_on not in ENDED
        assert places.index(goes_on) <= places.index(step)


def test_a_tag_says_what_and_which() -> None:
    assert tag_of("deployed", 7) == "deployed/7"
