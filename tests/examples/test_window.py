"""The desktop example's window, by its keyboard; on no screen but with Qt's own drawing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
widgets = pytest.importorskip("PySide6.QtWidgets", reason="PySide6, or a library that it needs", exc_type=ImportError)
from answering import Answered  # noqa: E402
from desktop import TITLE, Window  # noqa: E402
from PySide6.QtCore import QEvent, Qt, QTimer  # noqa: E402
from PySide6.QtTest import QTest  # noqa: E402

SECONDS = 60
TEXT = "<<48/2=24>>#### 7"


KEPT: list[
    Any
] = []  # the application, as long as the process lives: Qt does not bear to lose it before everything else


@pytest.fixture(scope="module")
def application() -> Any:
    # Where a library is missing Qt aborts the process, which shall not be this one.
    probe = "from PySide6.QtWidgets import QApplication; QApplication([])"
    tried = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"Qt does not start here: {tried.stderr.strip()[-200:]}")
    KEPT[:] = [widgets.QApplication.instance() or widgets.QApplication([])]
    return KEPT[0]


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        QTest.qWait(5)


@pytest.fixture
def show(application: Any) -> Iterator[Callable[[Path], Window]]:
    made: list[Window] = []

    def make(bundle: Path, **options: Any) -> Window:
        window = Window(str(bundle), **options)
        made.append(window)
        window.events = []
        window.happened.connect(window.events.append)
        window.show()
        window.activateWindow()
        window.question.setFocus()
        return window

    yield make
    for window in made:
        window.close()
        assert not window.answering._thread.is_alive()
        window.deleteLater()
    application.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def ask(window: Window, question: str) -> Any:
    """Type and press Enter; the result."""
    window.question.clear()
    if question.isascii():
        QTest.keyClicks(window.question, question)
    else:  # keys that Qt's test keyboard lacks
        window.question.insertPlainText(question)
    QTest.keyClick(window.question, Qt.Key.Key_Return)
    return answered(window)


def answered(window: Window) -> Any:
    before = len(window.events)
    until(lambda: any(isinstance(event, Answered) for event in window.events[before:]))
    return next(event.result for event in window.events[before:] if isinstance(event, Answered))


def test_ask_by_the_keyboard(show: Any, arithmetic: Path) -> None:
    window = show(arithmetic)
    assert ask(window, "48 / 2?").answer == "7"
    assert window.reasoning.toPlainText() == TEXT
    assert (window.answer.text(), window.windowTitle()) == ("7", f"7 – {TITLE}")
    assert "stop" in window.status.text()
    QTest.keyClicks(window.question, "one")
    QTest.keyClick(window.question, Qt.Key.Key_Return, Qt.KeyboardModifier.ShiftModifier)
    QTest.keyClicks(window.question, "two")
    assert window.question.toPlainText() == "48 / 2?one\ntwo" and window.ask_button.isEnabled()
    QTest.keyClick(window.question, Qt.Key.Key_A, Qt.KeyboardModifier.AltModifier)
    assert answered(window).question == "48 / 2?one\ntwo"


def test_the_window_does_not_freeze_and_escape_cancels(show: Any, endless: Path) -> None:
    """While an answer is written the window goes on: a timer of its own keeps ticking."""
    window = show(endless, context=20000)  # a fast machine fills a short context before ten ticks
    ticks: list[float] = []
    timer = QTimer(window)
    timer.timeout.connect(lambda: ticks.append(time.monotonic()))
    for stop in (
        lambda: QTest.keyClick(window.question, Qt.Key.Key_Escape),
        lambda: QTest.keyClick(window.cancel_button, Qt.Key.Key_Space),
    ):
        window.question.setPlainText("hola")
        QTest.keyClick(window.question, Qt.Key.Key_Return)
        assert not window.ask_button.isEnabled() and window.cancel_button.isEnabled()
        until(lambda: window.reasoning.toPlainText().count("ab") > 3)
        ticks.clear()
        timer.start(1)
        until(lambda: len(ticks) > 10)
        timer.stop()
        assert not window.ask_button.isEnabled()  # it is still being answered
        stop()
        assert answered(window).finish_reason == "cancelled"
        assert window.ask_button.isEnabled() and not window.cancel_button.isEnabled()
        assert "cancelled" in window.status.text()


def test_weights_by_the_keyboard(show: Any, gated: Path) -> None:
    window = show(gated)
    encoder, llm = window.weights
    result = ask(window, "hola")
    assert "Language: sw" in window.status.text()
    assert (result.encoder_weight, result.llm_weight) == (1.5, 0.5)
    assert (encoder.value(), llm.value()) == (15, 5) and encoder.given is llm.given is None  # the gate's, shown
    QTest.keyClick(window.question, Qt.Key.Key_E, Qt.KeyboardModifier.AltModifier)
    assert encoder.hasFocus()
    QTest.keyClick(encoder, Qt.Key.Key_Home)
    assert encoder.given == 0 and "left out" in encoder._shown.text()
    QTest.keyClick(llm, Qt.Key.Key_Right)
    assert llm.given == pytest.approx(0.6)
    result = ask(window, "hola")
    assert result.soft_prompt_rows == 0 and result.llm_weight == pytest.approx(0.6)
    QTest.keyClick(window.question, Qt.Key.Key_O, Qt.KeyboardModifier.AltModifier)
    until(lambda: encoder.given is None)  # a button is down for a moment
    assert ask(window, "hola").encoder_weight == 1.5


@pytest.mark.parametrize(("question", "right"), [("كم يساوي 48 / 2؟", True), ("¿Cuánto es 48 / 2?", False)])
def test_a_text_runs_as_its_language_does(show: Any, arithmetic: Path, question: str, right: bool) -> None:
    window = show(arithmetic)
    assert ask(window, question).question == question
    cursor = window.question.textCursor()
    cursor.movePosition(cursor.MoveOperation.Start)
    assert (window.question.cursorRect(cursor).x() > window.question.width() / 2) is right
    # the reasoning is English, whatever the question
    cursor = window.reasoning.textCursor()
    cursor.movePosition(cursor.MoveOperation.Start)
    assert window.reasoning.cursorRect(cursor).x() < window.reasoning.width() / 2


def test_everything_is_reached_by_tab(show: Any, arithmetic: Path) -> None:
    window = show(arithmetic)
    until(lambda: window.focusWidget() is window.question)
    reached = []
    for _ in range(8):
        reached.append(window.focusWidget())
        QTest.keyClick(window.focusWidget(), Qt.Key.Key_Tab)
    assert {window.question, window.ask_button, *window.weights, window.reasoning} <= set(reached)


def test_what_cannot_be_asked_is_said(show: Any, arithmetic: Path, tmp_path: Path) -> None:
    window = show(arithmetic)
    QTest.keyClick(window.question, Qt.Key.Key_Return)
    until(lambda: window.ask_button.isEnabled() and "empty" in window.status.text())
    assert ask(window, "hola").answer == "7"
    broken = show(tmp_path / "nowhere")
    until(lambda: "nowhere" in broken.status.text())
    assert not broken.ask_button.isEnabled()
