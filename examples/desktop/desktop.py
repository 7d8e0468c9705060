"""A window that answers questions in any language, offline: `python examples/desktop/desktop.py [QUESTION]`.

Enter asks, Shift+Enter begins a new line, Escape cancels. All of the model is in answering.py.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

from answering import Answered, Answering, Chunk, Event, Failed, Ready, Understood
from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QCloseEvent, QKeyEvent, QKeySequence, QShortcut, QTextCursor
from PySide6.QtWidgets import (
    QApplication,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSlider,
    QTextEdit,
    QVBoxLayout,
    QWidget,
)

TITLE = "MindMerger"
STEPS = 20  # of a slider from 0 to 2


class Question(QTextEdit):
    """Enter asks. Every paragraph runs from the side that its language begins on: Qt's rich text does that by itself."""

    asked = Signal()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        shifted = event.modifiers() & Qt.KeyboardModifier.ShiftModifier
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and not shifted:
            self.asked.emit()
        else:
            super().keyPressEvent(event)


class Weight(QSlider):
    """One of the two weights: the bundle's own until it is moved."""

    def __init__(self, shown: QLabel) -> None:
        super().__init__(Qt.Orientation.Horizontal)
        self.given: float | None = None
        self._shown = shown
        self.setRange(0, STEPS)
        self.setPageStep(STEPS // 4)
        self.release()
        self.valueChanged.connect(self._moved)

    def _moved(self, step: int) -> None:
        self.given = 2 * step / STEPS
        self._shown.setText(f"{self.given:.1f}, yours" if step else "0, left out")

    def release(self) -> None:
        """Give the weight back to the bundle."""
        self.given = None
        self.show_own(1.0)

    def show_own(self, own: float) -> None:
        """Show what the bundle chose, unless somebody chose otherwise."""
        if self.given is None:
            self.blockSignals(True)
            self.setValue(round(own * STEPS / 2))
            self.blockSignals(False)
            self._shown.setText(f"{own:.2f}, its own" if own else "left out")


class Window(QWidget):
    """Everything here runs in the window's thread and returns at once."""

    happened = Signal(object)

    def __init__(self, bundle: str | None = None, **options: Any) -> None:
        super().__init__()
        # Emitted in the model's thread, received in this one: Qt puts it into this thread's queue.
        self.happened.connect(self._on)
        self.answering = Answering(self.happened.emit, bundle=bundle, **options)
        self.setWindowTitle(TITLE)
        self.resize(640, 560)
        self.question, self.reasoning, self.answer, self.status = Question(), QTextEdit(), QLabel(), QLabel("Loading …")
        self.question.setAcceptRichText(False)
        self.question.setTabChangesFocus(True)
        self.question.setMaximumHeight(5 * self.question.fontMetrics().lineSpacing())
        self.reasoning.setReadOnly(True)
        self.answer.setStyleSheet("font-size: 24pt; font-weight: bold")
        self.status.setWordWrap(True)
        self.status.setTextFormat(Qt.TextFormat.PlainText)  # an error may quote the question, whatever that is
        self.ask_button, self.cancel_button = QPushButton("&Ask"), QPushButton("&Cancel")
        self.own_button = QPushButton("&Own weights")
        self.weights: list[Weight] = []
        self._lay_out()
        self.question.asked.connect(self.ask)
        self.ask_button.clicked.connect(self.ask)
        self.cancel_button.clicked.connect(self.answering.cancel)
        for weight in self.weights:
            self.own_button.clicked.connect(weight.release)
        QShortcut(QKeySequence(Qt.Key.Key_Escape), self, self.answering.cancel)
        self._busy(False)

    def _lay_out(self) -> None:
        buttons, weights, whole = QHBoxLayout(), QGridLayout(), QVBoxLayout(self)
        for button in (self.ask_button, self.cancel_button, self.own_button):
            buttons.addWidget(button)
        for row, name in enumerate(("&Encoder weight", "&LLM weight")):
            label, shown = QLabel(name), QLabel()
            weight = Weight(shown)
            label.setBuddy(weight)
            self.weights.append(weight)
            for column, widget in enumerate((label, weight, shown)):
                weights.addWidget(widget, row, column)
            shown.setMinimumWidth(shown.fontMetrics().horizontalAdvance("0.00, its own  "))
        for name, widget in (("&Question", self.question), ("&Reasoning", self.reasoning)):
            label = QLabel(name)
            label.setBuddy(widget)
            whole.addWidget(label)
            whole.addWidget(widget)
            if widget is self.question:
                whole.addLayout(buttons)
                whole.addLayout(weights)
        whole.addWidget(self.answer)
        whole.addWidget(self.status)

    def ask(self) -> None:
        if not self.ask_button.isEnabled():
            return
        self.reasoning.clear()
        self.answer.clear()
        self.setWindowTitle(TITLE)
        self.status.setText("Thinking …")
        self._busy(True)
        encoder, llm = (weight.given for weight in self.weights)
        self.answering.ask(self.question.toPlainText(), encoder_weight=encoder, llm_weight=llm)

    def _busy(self, busy: bool) -> None:
        self.ask_button.setEnabled(not busy)
        self.cancel_button.setEnabled(busy)

    def _on(self, event: Event) -> None:
        match event:
            case Ready(name, languages):
                if self.ask_button.isEnabled():
                    self.status.setText(f"{name}: {', '.join(languages)} and more")
            case Understood(language, encoder_weight, llm_weight):
                self.status.setText(f"Language: {language or 'unknown'}")
                for weight, own in zip(self.weights, (encoder_weight, llm_weight), strict=True):
                    weight.show_own(own)
            case Chunk(text):
                self.reasoning.moveCursor(QTextCursor.MoveOperation.End)
                self.reasoning.insertPlainText(text)
            case Answered(result):
                self._busy(False)
                self.answer.setText(result.answer or "")
                self.setWindowTitle(f"{result.answer or '…'} – {TITLE}")
                language = f"Language: {next(iter(result.language))}. " if result.language else ""
                speed = result.timings.tokens_per_second or 0
                self.status.setText(f"{language}{result.finish_reason}; {speed:.0f} tokens a second")
            case Failed(message, fatal):
                self._busy(False)
                self.ask_button.setDisabled(fatal)
                self.status.setText(message)

    def closeEvent(self, event: QCloseEvent) -> None:
        self.hide()  # at once, whatever the model still has to finish
        self.answering.close()
        super().closeEvent(event)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Qt's loop does not look for Ctrl-C
    application = QApplication(sys.argv)
    window = Window()
    window.show()
    if asked := " ".join(application.arguments()[1:]):
        window.question.setPlainText(asked)
        window.ask()
    return application.exec()


if __name__ == "__main__":
    sys.exit(main())
