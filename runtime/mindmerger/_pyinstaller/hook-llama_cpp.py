"""llama-cpp-python can cut text by transformers where that is installed. The runtime uses its C functions alone.

An application that imports one of these itself keeps it.
"""

from __future__ import annotations

excludedimports = ["torch", "transformers"]
