"""VibeVoice 1.5B and 7B, in the layout of `transformers` and in Microsoft's own, as configurations of our modules.

Place in the flow: interop, a folder with config.json and weights ──▶ a Pipeline. `configs.py` reads config.json,
`names.py` has the rules for the weights, `load.py` loads a checkpoint, `realtime.py` the parts of VibeVoice-Realtime.
`transformers` itself is not needed.
"""

from .configs import VibeVoice, read_config
from .load import load
from .names import rules
from .realtime import load_realtime

__all__ = ["VibeVoice", "load", "load_realtime", "read_config", "rules"]
