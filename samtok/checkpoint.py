"""Published weights as mask tokenizers: SAM2.1's, and the authors' tokenizer.

``from_sam2`` reads ``sam2.1_hiera_*.pt`` and ``from_authors`` reads ``mask_tokenizer_256x2.pth``; both are
unpickled with ``weights_only=True``, so a file can hold tensors and nothing that runs. A file that is wrong,
partial or foreign is refused with the keys named. Our own folders: ``MaskTokenizer.from_pretrained``.
"""

import dataclasses
import re

import torch
from torch import Tensor

from samtok.config import PRESETS, QuantizerConfig
from samtok.errors import CheckpointError
from samtok.model.state import fill, some
from samtok.model.tokenizer import MaskTokenizer

# Parts of SAM2 that only its video memory uses; a tokenizer has no place for them.
_VIDEO_ONLY = re.compile(
    r"(memory_attention|memory_encoder|obj_ptr_proj|obj_ptr_tpos_proj)\.|"
    r"(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial|mask_downsample\.\w+)$"
)
_RENAMED = {
    "image_encoder.": "image_encoder.",
    "sam_prompt_encoder.": "prompt_encoder.",
    "sam_mask_decoder.": "mask_decoder.",
    "sam_mask_encoder.": "mask_encoder.",
    "no_mem_embed": "no_mem_embed",
}
_AUTHORS_PREFIX = "model.sam2_model."


def from_sam2(path: str, preset: str, *, quantizer: QuantizerConfig | None = None) -> MaskTokenizer:
    """Starts a tokenizer from SAM2.1 weights (``sam2.1_hiera_*.pt``), as in paper appendix B.

    The mask encoder has no counterpart in SAM2: its transformer starts as a copy of the mask decoder's and
    its token as the decoder's first mask token. Codebooks are not set; ``quantizer.start`` does that in
    training. The preset is the size that the file belongs to, such as ``sam2.1-large``.

    Raises:
        CheckpointError: If keys are missing, unknown, or shaped for another size.
    """
    body = _torch_file(path)
    if not isinstance(body.get("model"), dict):
        raise CheckpointError(
            f'{path} has no "model" entry, so it is not a SAM2.1 file (top-level keys: {some(body)}).'
        )
    state = _rename(body["model"], path)
    decoder = "mask_decoder.transformer."
    for name in [name for name in state if name.startswith(decoder)]:
        state["mask_encoder.transformer." + name.removeprefix(decoder)] = state[name].clone()
    if "mask_decoder.mask_tokens.weight" in state:
        state["mask_encoder.mask_tokens.weight"] = state["mask_decoder.mask_tokens.weight"][:1].clone()
    model = _build(preset, quantizer)
    state.update({name: value for name, value in model.state_dict().items() if name.startswith("quantizer.")})
    fill(model, state, where=f"{path} (as {preset})")
    return model


def from_authors(path: str, preset: str = "sam2.1-large") -> MaskTokenizer:
    """Loads the authors' published tokenizer (``mask_tokenizer_256x2.pth``).

    Their codebooks end with a padding row that is never a code; it is left out here.

    Raises:
        CheckpointError: If keys are missing or unknown, or the file is of a variant with several mask tokens
            or concatenated embeddings, which has another encoder.
    """
    body = _torch_file(path)
    quantizer = {name: body.pop(name) for name in list(body) if name.startswith("quantizer.")}
    foreign = [name for name in body if not name.startswith(_AUTHORS_PREFIX)]
    if foreign:
        raise CheckpointError(
            f"{path} is not an authors' mask tokenizer of one token: keys {some(foreign)} do not start with "
            f"{_AUTHORS_PREFIX} or quantizer. Variants with concate_mask_embeds have no counterpart here."
        )
    state = _rename({n.removeprefix(_AUTHORS_PREFIX): v for n, v in body.items()}, path)
    tokens = state.get("mask_encoder.mask_tokens.weight")
    if tokens is not None and len(tokens) != 1:
        raise CheckpointError(
            f"{path} encodes a mask with {len(tokens)} tokens; only the published variant with one is "
            "supported."
        )
    state.update(_authors_codebooks(quantizer, path))
    levels, num_codes = state["quantizer.cluster_size"].shape
    model = _build(preset, QuantizerConfig(num_codes=num_codes, num_levels=levels))
    fill(model, state, where=f"{path} (as {preset})")
    return model


def _authors_codebooks(entries: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    levels = len([name for name in entries if name.endswith(".weight")])
    wanted = [
        f"quantizer.codebooks.{level}.{part}"
        for level in range(max(levels, 1))
        for part in ("weight", "cluster_size_ema", "embed_ema")
    ]
    if set(wanted) != set(entries):
        raise CheckpointError(f"{path}: quantizer keys are {some(entries)}; expected {some(wanted)}.")
    if len({entries[name].shape for name in wanted[::3]}) != 1:
        raise CheckpointError(f"{path}: codebooks of different sizes are not supported.")
    sizes = torch.stack([entries[name] for name in wanted[1::3]])
    steps = sizes.sum(dim=1, keepdim=True).clamp_min(1)  # theirs are counts per step, ours shares of it
    return {
        "quantizer.codebooks": torch.stack([entries[name][:-1] for name in wanted[0::3]]),
        "quantizer.cluster_size": sizes / steps,
        "quantizer.embed_sum": torch.stack([entries[name] for name in wanted[2::3]]) / steps[..., None],
    }


def _build(preset: str, quantizer: QuantizerConfig | None) -> MaskTokenizer:
    if not preset.startswith("sam2.1-") or preset not in PRESETS:
        known = [name for name in PRESETS if name.startswith("sam2.1-")]
        raise CheckpointError(f"preset {preset!r} is not a SAM2.1 size; choose one of {known}.")
    config = PRESETS[preset]
    return MaskTokenizer(dataclasses.replace(config, quantizer=quantizer or config.quantizer))


def _torch_file(path: str) -> dict:
    try:
        body = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}.") from error
    except Exception as error:  # unpickling refuses in many ways; all mean the same to a user
        raise CheckpointError(
            f"{path} cannot be read as plain tensors ({type(error).__name__}: {str(error)[:200]}). It is "
            "broken, or holds Python objects, which are never loaded."
        ) from error
    if not isinstance(body, dict):
        raise CheckpointError(f"{path} holds a {type(body).__name__}; expected a dictionary of tensors.")
    return body


def _rename(entries: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    state, unknown = {}, []
    for name, value in entries.items():
        prefix = next((p for p in _RENAMED if name.startswith(p)), None)
        if prefix is not None:
            state[_RENAMED[prefix] + name.removeprefix(prefix)] = value
        elif not _VIDEO_ONLY.match(name):
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{path} has keys that SAM2.1 does not have: {some(unknown)}.")
    return state
