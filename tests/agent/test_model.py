from pathlib import Path

import pytest

from hive_agent.model import BadEffort, BadModel, EffortChoice, ModelChoice

from .fakes import Emitted


def test_the_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("opus\nsecond line\n")

    assert ModelChoice(tmp_path / "model", Emitted(), fallback="haiku").current() == "opus"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"two words\n", b"--flag\n", b"\xff\xfe", b"x" * 5000])
def test_a_file_that_names_no_model_is_passed_over(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model").write_bytes(content)

    assert ModelChoice(tmp_path / "model", Emitted(), fallback="haiku").current() == "haiku"


def test_a_choice_is_remembered_and_told(tmp_path: Path) -> None:
    emitted = Emitted()

    ModelChoice(tmp_path / "model", emitted, fallback="haiku").choose("opus")

    assert ModelChoice(tmp_path / "model", emitted, fallback="haiku").current() == "opus"
    assert emitted.of("model_changed") == [{"model": "opus"}]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_choice_that_cannot_be_remembered_holds_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelChoice(tmp_path / "missing" / "model", Emitted(), fallback="haiku")

    model.choose("opus")

    assert model.current() == "opus"
    assert "cannot be remembered" in caplog.text


def test_the_same_choice_again_is_no_event(tmp_path: Path) -> None:
    emitted = Emitted()

    ModelChoice(tmp_path / "model", emitted, fallback="haiku").choose("haiku")

    assert emitted.events == []


def test_a_choice_that_is_no_name_changes_nothing(tmp_path: Path) -> None:
    model = ModelChoice(tmp_path / "model", Emitted(), fallback="haiku")

    with pytest.raises(BadModel):
        model.choose("two words")

    assert model.current() == "haiku"


# ── effort ──────────────────────────────────────────────────────────────────────────────────────

LEVELS = ("low", "high")


@pytest.mark.parametrize(
    ("content", "fallback", "effort"),
    [
        (None, None, None),
        (None, "low", "low"),
        ("high\n", "low", "high"),
        ("huge\n", "low", "low"),
        ("huge\n", "huge", None),
        ("\n", None, None),
    ],
)
def test_an_effort_is_the_files_then_what_was_told(
    tmp_path: Path, content: str | None, fallback: str | None, effort: str | None
) -> None:
    if content is not None:
        (tmp_path / "effort").write_text(content)

    choice = EffortChoice(tmp_path / "effort", Emitted(), known=LEVELS, fallback=fallback)

    assert choice.current() == effort


def test_an_effort_is_remembered_told_and_forgotten(tmp_path: Path) -> None:
    emitted = Emitted()
    choice = EffortChoice(tmp_path / "effort", emitted, known=LEVELS)

    choice.choose("high")
    choice.choose("high")
    assert EffortChoice(tmp_path / "effort", emitted, known=LEVELS).current() == "high"
    choice.choose("default")

    assert EffortChoice(tmp_path / "effort", emitted, known=LEVELS).current() is None
    assert emitted.of("effort_changed") == [{"effort": "high"}, {"effort": None}]


@pytest.mark.parametrize(
    ("known", "effort"), [(LEVELS, "huge"), (LEVELS, "--x"), ((), "low"), ((), "default")]
)
def test_an_effort_that_the_provider_does_not_know_is_refused(
    tmp_path: Path, known: tuple[str, ...], effort: str
) -> None:
    choice = EffortChoice(tmp_path / "effort", Emitted(), known=known)

    with pytest.raises(BadEffort, match=r"^cannot"):
        choice.choose(effort)

    assert not (tmp_path / "effort").exists()
