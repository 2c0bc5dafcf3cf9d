"""TensorFlow's import without the lines that its C++ side writes to stderr before it has a log."""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any


def load_tensorflow() -> Any:
    """Import TensorFlow and its text ops; returns the `tensorflow` module.

    Where TF_CPP_MIN_LOG_LEVEL asks for silence, file descriptor 2 is held during the first
    import: since TensorFlow 2.18 that level binds only after absl's log is set up. What was held
    is shown if the import fails.
    """
    if "tensorflow_text" in sys.modules or not os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") > "0":
        import tensorflow as tf
        import tensorflow_text

        return tf
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf
            import tensorflow_text  # noqa: F401

            # The first look for a GPU writes its own lines, whatever the level.
            tf.config.get_visible_devices()
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return tf
