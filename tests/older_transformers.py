"""What a checkpoint makes of a chat with an image, in whichever transformers runs this.

python tests/older_transformers.py FOLDER RESULT.npz
"""

import sys

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

TEXT = "Where is <|mt_start|><|mt_0003|><|mt_0017|><|mt_end|> the red one?"


def logits_of(folder: str) -> dict[str, np.ndarray]:
    """Loads processor and model of a folder; returns what goes in, what comes out, and the version."""
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, dtype="auto"
    )
    assert not any(info.values()), info
    pixels = np.random.default_rng(0).integers(0, 256, (80, 112, 3), dtype=np.uint8)
    parts = [{"type": "image"}, {"type": "text", "text": TEXT}]
    chat = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    batch = processor(images=[Image.fromarray(pixels)], text=[text], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**batch).logits
    found = {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"], "logits": logits}
    version = np.array([int(part) for part in transformers.__version__.split(".")[:2]])
    return {name: tensor.numpy() for name, tensor in found.items()} | {"version": version}


if __name__ == "__main__":
    for given in sys.argv[1:]:
        np.savez(f"{given}.npz", **logits_of(given))
