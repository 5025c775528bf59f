"""Weight files as SAM2.1's and the authors' are published: the names of their tensors, and ours.

Files are unpickled with ``weights_only=True``, so they can hold tensors and nothing that runs.
"""

import re
from collections.abc import Collection, Mapping
from io import BytesIO

import torch
from torch import Tensor
from torch.nn.functional import pad

from samtok.config import PRESETS, MaskTokenizerConfig
from samtok.errors import CheckpointError
from samtok.folders import BESIDE_FILE, authors_name, beside_json

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


def torch_file(data: bytes, where: str) -> dict:
    """Reads the dictionary of a file of torch's.

    Raises:
        CheckpointError: If it is broken, or holds anything but tensors.
    """
    try:
        body = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling refuses in many ways; all mean the same to a user
        raise CheckpointError(
            f"{where} cannot be read as plain tensors ({type(error).__name__}: {str(error)[:200]}). It is "
            "broken, or holds Python objects, which are never loaded."
        ) from error
    if not isinstance(body, dict):
        raise CheckpointError(f"{where} holds a {type(body).__name__}; expected a dictionary of tensors.")
    return body


def sam2_state(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Reads ``sam2.1_hiera_*.pt``: tensors by our names, and by its own those that only videos need.

    Raises:
        CheckpointError: If it is no such file.
    """
    body = torch_file(data, where)
    entries = body.get("model")
    if not isinstance(entries, dict):
        raise CheckpointError(
            f'{where} has no "model" entry, so it is not a SAM2.1 file (top-level keys: {some(body)}).'
        )
    video = {name: value for name, value in entries.items() if _VIDEO_ONLY.match(name)}
    return _renamed(entries, where), video


def authors_state(data: bytes, where: str) -> dict[str, Tensor]:
    """Reads ``mask_tokenizer_256x2.pth``: tensors by our names.

    Their codebooks end with a padding row that is never a code; it is left out here.

    Raises:
        CheckpointError: If names are foreign, or the file is of a variant with several mask tokens or
            concatenated embeddings, which has another encoder.
    """
    body = torch_file(data, where)
    quantizer = {name: body.pop(name) for name in list(body) if name.startswith("quantizer.")}
    foreign = [name for name in body if not name.startswith(_AUTHORS_PREFIX)]
    if foreign:
        raise CheckpointError(
            f"{where} is not an authors' mask tokenizer of one token: keys {some(foreign)} do not start with "
            f"{_AUTHORS_PREFIX} or quantizer. Variants with concate_mask_embeds have no counterpart here."
        )
    state = _renamed({n.removeprefix(_AUTHORS_PREFIX): v for n, v in body.items()}, where)
    tokens = state.get("mask_encoder.mask_tokens.weight")
    if tokens is not None and len(tokens) != 1:
        raise CheckpointError(
            f"{where} encodes a mask with {len(tokens)} tokens; only the published variant with one is "
            "supported."
        )
    return state | _codebooks(quantizer, where)


def authors_files(
    state: Mapping[str, Tensor], config: MaskTokenizerConfig, *, sha256: str | None, sam2: bytes | None
) -> dict[str, bytes]:
    """Returns the files of a tokenizer in the authors' layout, by name; see ``checkpoint.to_authors``."""
    if config.quantizer.kind == "fsq" or config.quantizer.shared:
        kind = "shared codebooks" if config.quantizer.shared else "an fsq quantizer"
        raise CheckpointError(
            f"the authors' files have one codebook per level, and this tokenizer has {kind}."
        )
    files: dict[str, bytes] = {}
    theirs: dict[str, Tensor] = {}
    if sam2 is not None:
        own, video = sam2_state(sam2, "--sam2")
        fitting = [name for name, preset in PRESETS.items() if preset.backbone == config.backbone]
        if not fitting or any(n not in state or state[n].shape != v.shape for n, v in own.items()):
            raise CheckpointError(
                "--sam2 is not the SAM2.1 whose size the mask tokenizer has; give that one."
            )
        size = fitting[0].removeprefix("sam2.1-").replace("-", "_")
        files[f"sam2.1_hiera_{size}.pt"] = sam2
        theirs = {_AUTHORS_PREFIX + name: value for name, value in video.items()}
    before = {ours: published for published, ours in _RENAMED.items()}
    for name, value in state.items():
        prefix = next((p for p in before if name.startswith(p)), None)
        if prefix is not None:
            theirs[_AUTHORS_PREFIX + before[prefix] + name.removeprefix(prefix)] = value
    for level, codebook in enumerate(state["quantizer.codebooks"]):
        entry = f"quantizer.codebooks.{level}."
        theirs[entry + "weight"] = pad(codebook, (0, 0, 0, 1))
        theirs[entry + "cluster_size_ema"] = state["quantizer.cluster_size"][level].clone()
        theirs[entry + "embed_ema"] = state["quantizer.embed_sum"][level].clone()
    written = BytesIO()
    torch.save(theirs, written)
    files[authors_name(config)] = written.getvalue()
    files[BESIDE_FILE] = beside_json(config, files[authors_name(config)], sha256)
    return files


def some(names: Collection[str]) -> str:
    """Returns the first names of many, for messages."""
    shown = list(names)[:5]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shown) + more if shown else "none"


def _codebooks(entries: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    levels = len([name for name in entries if name.endswith(".weight")])
    wanted = [
        f"quantizer.codebooks.{level}.{part}"
        for level in range(max(levels, 1))
        for part in ("weight", "cluster_size_ema", "embed_ema")
    ]
    if set(wanted) != set(entries):
        raise CheckpointError(f"{where}: quantizer keys are {some(entries)}; expected {some(wanted)}.")
    if len({entries[name].shape for name in wanted[::3]}) != 1:
        raise CheckpointError(f"{where}: codebooks of different sizes are not supported.")
    sizes = torch.stack([entries[name] for name in wanted[1::3]])
    steps = sizes.sum(dim=1, keepdim=True).clamp_min(1)  # theirs are counts per step, ours shares of it
    return {
        "quantizer.codebooks": torch.stack([entries[name][:-1] for name in wanted[0::3]]),
        "quantizer.cluster_size": sizes / steps,
        "quantizer.embed_sum": torch.stack([entries[name] for name in wanted[2::3]]) / steps[..., None],
    }


def _renamed(entries: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    state, unknown = {}, []
    for name, value in entries.items():
        prefix = next((p for p in _RENAMED if name.startswith(p)), None)
        if prefix is not None:
            state[_RENAMED[prefix] + name.removeprefix(prefix)] = value
        elif not _VIDEO_ONLY.match(name):
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{where} has keys that SAM2.1 does not have: {some(unknown)}.")
    return state
