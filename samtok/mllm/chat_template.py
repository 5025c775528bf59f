"""What the chat template of a checkpoint writes. A template is a program of whoever made the folder.

transformers' sandbox keeps it from the machine, and not from looping for years or filling memory. So it is
rendered by transformers in a process of its own, with limits, once for each template.
"""

import json
import subprocess
import sys
from functools import lru_cache

from samtok.errors import CheckpointError

MAX_CPU_S = 15
"""Most of it is importing transformers."""
_MAX_BYTES = 1 << 30
_MAX_CHARS = 10_000
_PROGRAM = """
import json, os, resource, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # whose buffers count as memory
given = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_CPU, (given["cpu_s"],) * 2)
resource.setrlimit(resource.RLIMIT_AS, (given["bytes"],) * 2)
from transformers.utils.chat_template_utils import render_jinja_template
text = render_jinja_template([given["turns"]], chat_template=given["template"], add_generation_prompt=True,
                             **given["options"])[0][0]
print(json.dumps(text if len(text) <= given["most"] else None))
"""


def rendered(template: str, turns: list[dict[str, object]], options: dict[str, object]) -> str:
    """Returns a dialogue as a template writes it, up to where the assistant begins.

    Args:
        turns: In the form that templates take.
        options: Special tokens by their names, such as ``bos_token``, and whatever else a template asks for.

    Raises:
        CheckpointError: It fails, needs too much time or memory, or writes too much.
    """
    limits = {"cpu_s": MAX_CPU_S, "bytes": _MAX_BYTES, "most": _MAX_CHARS}
    given = {"template": template, "turns": turns, "options": options, **limits}
    return _rendered(json.dumps(given, default=str))


@lru_cache(maxsize=16)
def _rendered(given: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [
            f"it took over {MAX_CPU_S} s or {_MAX_BYTES >> 30} GiB"
        ]
        raise CheckpointError(
            f"the chat template of this checkpoint cannot be used: {said[0][:300]}. Give the folder the "
            "template of the released checkpoints."
        )
    text = json.loads(done.stdout.splitlines()[-1])
    if text is None:
        raise CheckpointError(
            f"the chat template of this checkpoint writes over {_MAX_CHARS} characters before a question. "
            "Give the folder the template of the released checkpoints."
        )
    return text
