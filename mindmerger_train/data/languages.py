"""How published sets call languages: English names and ISO 639-1 codes → the code that is used here (ISO 639-1)."""

from __future__ import annotations

import re

NAMES = {
    "Albanian": "sq", "Amharic": "am", "Arabic": "ar", "Bengali": "bn", "Bulgarian": "bg", "Chinese": "zh", "Croatian": "hr",
    "Czech": "cs", "Dutch": "nl", "English": "en", "Finnish": "fi", "Flemish": "nl", "French": "fr", "Georgian": "ka",
    "German": "de", "Greek": "el", "Gujarati": "gu", "Hebrew": "he", "Hindi": "hi", "Hungarian": "hu", "Indonesian": "id",
    "Italian": "it", "Japanese": "ja", "Kannada": "kn", "Khmer": "km", "Korean": "ko", "Lithuanian": "lt", "Macedonian": "mk",
    "Malayalam": "ml", "Marathi": "mr", "Persian": "fa", "Polish": "pl", "Portuguese": "pt", "Punjabi": "pa", "Romanian": "ro",
    "Russian": "ru", "Serbian": "sr", "Sinhala": "si", "Spanish": "es", "Swahili": "sw", "Swedish": "sv", "Tagalog": "tl",
    "Tamil": "ta", "Telugu": "te", "Thai": "th", "Turkish": "tr", "Ukrainian": "uk", "Urdu": "ur", "Uzbek": "uz",
    "Vietnamese": "vi", "Yoruba": "yo", "Zulu": "zu",
}  # fmt: skip
"""English names in the published sets (MSVAMP's file names, MindMerger's training sets); Flemish is theirs for Dutch."""

_CODE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})*")
_BY_LOWER = {name.lower(): code for name, code in NAMES.items()}


def code_of(name: str) -> str | None:
    """`Swahili`, `swahili` or `sw` → `sw`; a code that is not in the table is kept. None: this is no language's name."""
    found = _BY_LOWER.get(name.strip().lower())
    if found is not None:
        return found
    return name.strip() if _CODE.fullmatch(name.strip()) else None
