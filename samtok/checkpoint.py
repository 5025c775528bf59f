"""Published weights as mask tokenizers: SAM2.1's, and the authors' tokenizer.

``from_sam2`` reads ``sam2.1_hiera_*.pt``, or transformers' folder of it, and ``from_authors`` reads
``mask_tokenizer_256x2.pth``; files are unpickled with ``weights_only=True``, so they can hold tensors and
nothing that runs. What is wrong, partial or foreign is refused with the keys named. Places are URIs as in
``MaskTokenizer.from_pretrained``, which reads our own folders.
"""

import dataclasses
import re
from io import BytesIO

import torch
from torch import Tensor

from samtok import sam2_folder
from samtok.config import PRESETS, MaskTokenizerConfig, QuantizerConfig
from samtok.errors import CheckpointError, SamtokError
from samtok.folders import CONFIG_FILE, WEIGHTS_FILE, Read, read_file, resolve, sam2_weights
from samtok.model.state import fill, read_state, some
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


def from_sam2(
    uri: str, preset: str | None = None, *, quantizer: QuantizerConfig | None = None, read: Read | None = None
) -> MaskTokenizer:
    """Starts a tokenizer from SAM2.1 weights, as in paper appendix B.

    The mask encoder has no counterpart in SAM2: its transformer starts as a copy of the mask decoder's and
    its token as the decoder's first mask token. Codebooks are not set; ``quantizer.start`` does that in
    training.

    Args:
        uri: A file ``sam2.1_hiera_*.pt``, or a folder as transformers has it (``model.safetensors`` and
            ``config.json``), such as the hub's ``facebook/sam2.1-hiera-large``.
        preset: The size that it belongs to, such as ``sam2.1-large``. A folder states its own, so there it
            may be left out.
        read: Reads a file by its URI, in the place of fsspec.

    Raises:
        CheckpointError: If keys are missing, unknown, or shaped for another size.
    """
    if sam2_weights(uri) == uri:
        body = _torch_file(uri, read)
        if not isinstance(body.get("model"), dict):
            raise CheckpointError(
                f'{uri} has no "model" entry, so it is not a SAM2.1 file (top-level keys: {some(body)}).'
            )
        state, config = _rename(body["model"], uri), _config_of(preset)
    else:
        config = _folder_config(uri, preset, read)
        state = sam2_folder.renamed(read_state(uri, read=read)[0])
    decoder = "mask_decoder.transformer."
    for name in [name for name in state if name.startswith(decoder)]:
        state["mask_encoder.transformer." + name.removeprefix(decoder)] = state[name].clone()
    if "mask_decoder.mask_tokens.weight" in state:
        state["mask_encoder.mask_tokens.weight"] = state["mask_decoder.mask_tokens.weight"][:1].clone()
    model = _build(config, quantizer)
    state.update({name: value for name, value in model.state_dict().items() if name.startswith("quantizer.")})
    fill(model, state, where=f"{uri} (as {preset or 'its config says'})")
    return model


def from_authors(uri: str, preset: str = "sam2.1-large", *, read: Read | None = None) -> MaskTokenizer:
    """Loads the authors' published tokenizer (``mask_tokenizer_256x2.pth``) from a file's URI.

    Their codebooks end with a padding row that is never a code; it is left out here.

    Raises:
        CheckpointError: If keys are missing or unknown, or the file is of a variant with several mask tokens
            or concatenated embeddings, which has another encoder.
    """
    body = _torch_file(uri, read)
    quantizer = {name: body.pop(name) for name in list(body) if name.startswith("quantizer.")}
    foreign = [name for name in body if not name.startswith(_AUTHORS_PREFIX)]
    if foreign:
        raise CheckpointError(
            f"{uri} is not an authors' mask tokenizer of one token: keys {some(foreign)} do not start with "
            f"{_AUTHORS_PREFIX} or quantizer. Variants with concate_mask_embeds have no counterpart here."
        )
    state = _rename({n.removeprefix(_AUTHORS_PREFIX): v for n, v in body.items()}, uri)
    tokens = state.get("mask_encoder.mask_tokens.weight")
    if tokens is not None and len(tokens) != 1:
        raise CheckpointError(
            f"{uri} encodes a mask with {len(tokens)} tokens; only the published variant with one is "
            "supported."
        )
    state.update(_authors_codebooks(quantizer, uri))
    levels, num_codes = state["quantizer.cluster_size"].shape
    model = _build(_config_of(preset), QuantizerConfig(num_codes=num_codes, num_levels=levels))
    fill(model, state, where=f"{uri} (as {preset})")
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


def _config_of(preset: str | None) -> MaskTokenizerConfig:
    known = [name for name in PRESETS if name.startswith("sam2.1-")]
    if preset is None or preset not in known:
        raise CheckpointError(f"preset {preset!r} is not a SAM2.1 size; choose one of {known}.")
    return PRESETS[preset]


def _folder_config(uri: str, preset: str | None, read: Read | None) -> MaskTokenizerConfig:
    where = f"{resolve(uri)}/{CONFIG_FILE}"
    try:
        found = sam2_folder.architecture(read_file(where, read).decode(), where=where)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is no {where}. SAM2.1 is a file *.pt, or a folder with {CONFIG_FILE} and {WEIGHTS_FILE}."
        ) from error
    if preset is not None and found != _config_of(preset):
        fitting = [name for name, config in PRESETS.items() if config == found]
        raise CheckpointError(
            f"{where} is not {preset}; it is {fitting[0] if fitting else 'of no known size'}."
        )
    return found


def _build(config: MaskTokenizerConfig, quantizer: QuantizerConfig | None) -> MaskTokenizer:
    return MaskTokenizer(dataclasses.replace(config, quantizer=quantizer or config.quantizer))


def _torch_file(uri: str, read: Read | None) -> dict:
    try:
        body = torch.load(BytesIO(read_file(uri, read)), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {uri}.") from error
    except SamtokError:
        raise
    except Exception as error:  # unpickling refuses in many ways; all mean the same to a user
        raise CheckpointError(
            f"{uri} cannot be read as plain tensors ({type(error).__name__}: {str(error)[:200]}). It is "
            "broken, or holds Python objects, which are never loaded."
        ) from error
    if not isinstance(body, dict):
        raise CheckpointError(f"{uri} holds a {type(body).__name__}; expected a dictionary of tensors.")
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
