"""gguf reads vocabularies of training tools where they are installed. The runtime asks it for its quantisers alone.

An application that imports one of these itself keeps it.
"""

from __future__ import annotations

excludedimports = ["mistral_common", "sentencepiece", "torch", "transformers"]
