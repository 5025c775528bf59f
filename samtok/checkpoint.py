"""Published weights as mask tokenizers: SAM2.1's, and the authors' tokenizer.

``from_sam2`` reads ``sam2.1_hiera_*.pt``, or transformers' folder of it, and ``from_authors`` reads
``mask_tokenizer_256x2.pth``, which ``to_authors`` writes. What is wrong, partial or foreign is refused with
the keys named. Places are URIs as in ``MaskTokenizer.from_pretrained``, which reads our own folders.
"""

import dataclasses

from samtok import sam2_folder
from samtok.config import PRESETS, MaskTokenizerConfig, QuantizerConfig
from samtok.errors import CheckpointError
from samtok.folders import CONFIG_FILE, WEIGHTS_FILE, Read, read_file, resolve, sam2_weights
from samtok.model.published import authors_files, authors_state, sam2_state
from samtok.model.state import fill, read_safetensors
from samtok.model.tokenizer import MaskTokenizer


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
    weights = sam2_weights(uri)
    if weights == uri:
        state, config = sam2_state(_read(uri, read), uri)[0], _config_of(preset)
    else:
        config = _folder_config(uri, preset, read)
        state = sam2_folder.renamed(read_safetensors(_read(weights, read), weights))
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

    ``MaskTokenizer.from_pretrained`` reads it where it lies beside a model, as in their checkpoints.

    Raises:
        CheckpointError: If keys are missing or unknown, or the file is of a variant with several mask tokens
            or concatenated embeddings, which has another encoder.
    """
    state = authors_state(_read(uri, read), uri)
    levels, num_codes = state["quantizer.cluster_size"].shape
    model = _build(_config_of(preset), QuantizerConfig(num_codes=num_codes, num_levels=levels))
    fill(model, state, where=f"{uri} (as {preset})")
    return model


def to_authors(tokenizer: MaskTokenizer, *, sam2: bytes | None = None) -> dict[str, bytes]:
    """Returns the files that lie beside a model in the authors' checkpoints, by name.

    Codes and masks stay equal; averages of the codebooks do to rounding. ``mask_tokenizer.json`` is ours and
    says which tokenizer it is: without it a folder is taken for one with the published tokenizer.

    Args:
        sam2: ``sam2.1_hiera_*.pt``, from which the authors' code builds its model: added as it is, and its
            parts for videos to the tokenizer's weights, where their code looks for them too.

    Raises:
        CheckpointError: For a quantizer that they have none of, or a SAM2 of another size.
    """
    state = {name: tensor.detach().cpu() for name, tensor in tokenizer.state_dict().items()}
    return authors_files(state, tokenizer.config, sha256=tokenizer.weights_sha256, sam2=sam2)


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


def _read(uri: str, read: Read | None) -> bytes:
    try:
        return read_file(uri, read)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {uri}.") from error
