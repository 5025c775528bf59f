"""The mask decoder: SAM2's own, prompted with the embedding of the codes (paper, section 2.1)."""

import torch
from jaxtyping import Float
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from torch import Tensor

from samtok.config import MaskTokenizerConfig
from samtok.model.backbone import ImageFeatures


def build_transformer(config: MaskTokenizerConfig) -> TwoWayTransformer:
    """Builds the two-way transformer that both the mask encoder and the mask decoder use."""
    return TwoWayTransformer(
        depth=config.depth, embedding_dim=config.dim, num_heads=config.num_heads, mlp_dim=config.mlp_dim
    )


def build_prompt_encoder(config: MaskTokenizerConfig) -> PromptEncoder:
    """Builds SAM's prompt encoder for square images."""
    return PromptEncoder(
        embed_dim=config.dim,
        image_embedding_size=(config.feature_size, config.feature_size),
        input_image_size=(config.image_size, config.image_size),
        mask_in_chans=16,
    )


def build_mask_decoder(config: MaskTokenizerConfig) -> MaskDecoder:
    """Builds SAM2.1's mask decoder; without ``multimask`` it has one mask token instead of four."""
    return MaskDecoder(
        transformer_dim=config.dim,
        transformer=build_transformer(config),
        num_multimask_outputs=3 if config.multimask else 0,
        iou_head_hidden_dim=config.dim,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=config.object_score,
        pred_obj_scores_mlp=config.object_score,
        use_multimask_token_for_obj_ptr=config.multimask,
    )


def decode_embeddings(
    decoder: MaskDecoder,
    prompt_encoder: PromptEncoder,
    features: ImageFeatures,
    embeddings: Float[Tensor, "mask dim"],
    *,
    multimask: bool,
) -> Float[Tensor, "mask size size"]:
    """Returns mask logits at the decoder's size (256 at 1024 px).

    The decoder gets no box and no mask: two empty points and the learned no-mask embedding stand in their
    places, the code embedding follows as the third sparse prompt. Of three masks the one with the highest
    predicted IoU is kept; the object score does not suppress it.

    Args:
        decoder: With three candidate masks if ``multimask``.
        prompt_encoder: Gives the empty prompts and the positions.
        features: One entry per mask (``ImageFeatures.of_masks``).
        embeddings: Sum of the code embeddings of each mask.
    """
    num_masks, dim = embeddings.shape
    empty = prompt_encoder.not_a_point_embed.weight.expand(num_masks, 2, dim)
    no_mask = prompt_encoder.no_mask_embed.weight.reshape(1, dim, 1, 1).expand_as(features.coarse)
    logits, predicted_iou, _, _ = decoder(
        image_embeddings=features.coarse,
        image_pe=prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=torch.cat([empty, embeddings[:, None]], dim=1),
        dense_prompt_embeddings=no_mask,
        multimask_output=multimask,
        repeat_image=False,
        high_res_features=[features.fine, features.middle],
    )
    best = predicted_iou.argmax(dim=1)
    return logits[torch.arange(num_masks, device=logits.device), best]
