"""All tests read sentences in English, whatever the locale of the machine."""

import os

os.environ["MINDMERGER_LANG"] = "en"
