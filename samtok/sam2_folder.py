"""SAM2.1 as transformers lays it out (``facebook/sam2.1-hiera-large``): its names and its config, as ours.

Source: ``models/sam2/convert_sam2_to_hf.py`` of transformers, read backwards. What only video memory uses is
left out; positions, which transformers keeps twice, are taken once.
"""

import json
import re
from typing import Any

from torch import Tensor

from samtok.config import BackboneConfig, MaskTokenizerConfig
from samtok.errors import CheckpointError

MODEL_TYPES = ("sam2", "sam2_video")

_VIDEO_ONLY = re.compile(
    r"(memory_attention|memory_encoder|object_pointer_proj|temporal_positional_encoding_projection_layer|"
    r"mask_downsample|shared_image_embedding)\.|"
    r"(memory_temporal_positional_encoding|no_memory_positional_encoding|no_object_pointer|"
    r"occlusion_spatial_embedding_parameter)$"
)
_HEADS = r"(iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+)"
_RENAMED = [
    (re.compile(old), new)
    for old, new in (
        (r"^no_memory_embedding$", "no_mem_embed"),
        (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
        (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
        (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
        (r"\.mask_embed\.conv1\.", ".mask_downscaling.0."),
        (r"\.mask_embed\.layer_norm1\.", ".mask_downscaling.1."),
        (r"\.mask_embed\.conv2\.", ".mask_downscaling.3."),
        (r"\.mask_embed\.layer_norm2\.", ".mask_downscaling.4."),
        (r"\.mask_embed\.conv3\.", ".mask_downscaling.6."),
        (r"\.upscale_conv1\.", ".output_upscaling.0."),
        (r"\.upscale_layer_norm\.", ".output_upscaling.1."),
        (r"\.upscale_conv2\.", ".output_upscaling.3."),
        (r"\.shared_embedding\.positional_embedding$", ".pe_layer.positional_encoding_gaussian_matrix"),
        (r"\.layer_norm", ".norm"),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
        (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
        (rf"\.{_HEADS}\.layers\.0\.", r".\1.layers.1."),  # before the next line makes a new layers.0
        (rf"\.{_HEADS}\.proj_in\.", r".\1.layers.0."),
        (rf"\.{_HEADS}\.proj_out\.", r".\1.layers.2."),
    )
]
_POINTS = "prompt_encoder.point_embed.weight"


def renamed(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of ``model.safetensors`` under a tokenizer's names; unknown names stay."""
    state = {}
    for name, value in entries.items():
        if name == _POINTS:
            rows = value.split(1)
            state |= {f"prompt_encoder.point_embeddings.{i}.weight": row for i, row in enumerate(rows)}
        elif not _VIDEO_ONLY.match(name):
            for old, new in _RENAMED:
                name = old.sub(new, name)
            state[name] = value
    return state


def architecture(text: str, *, where: str) -> MaskTokenizerConfig:
    """Reads ``config.json``; CheckpointError if it is of another model."""
    from transformers import Sam2HieraDetConfig, Sam2MaskDecoderConfig, Sam2VisionConfig  # slow to import

    try:
        body: Any = json.loads(text)
        if body["model_type"] not in MODEL_TYPES:
            raise ValueError(f"its model_type is {body['model_type']!r}")
        vision: Any = Sam2VisionConfig(**body.get("vision_config", {}))
        decoder: Any = Sam2MaskDecoderConfig(**body.get("mask_decoder_config", {}))
        trunk: Any = vision.backbone_config
        if trunk.model_type != Sam2HieraDetConfig.model_type:
            raise ValueError(f"its backbone is a {trunk.model_type}")
        backbone = BackboneConfig(
            kind="hiera",
            embed_dim=trunk.hidden_size,
            num_heads=trunk.num_attention_heads,
            stages=tuple(trunk.blocks_per_stage),
            global_att_blocks=tuple(trunk.global_attention_blocks),
            window_pos_embed_bkg_spatial_size=tuple(trunk.window_positional_embedding_background_size),
            window_spec=tuple(trunk.window_size_per_stage),
            fpn_top_down_levels=tuple(vision.fpn_top_down_levels),
        )
        return MaskTokenizerConfig(
            image_size=trunk.image_size[0],
            dim=vision.fpn_hidden_size,
            num_heads=decoder.num_attention_heads,
            mlp_dim=decoder.mlp_dim,
            depth=decoder.num_hidden_layers,
            backbone=backbone,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{where} is not the config of a SAM2.1 of transformers: {error}.") from error
