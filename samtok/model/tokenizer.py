"""The mask tokenizer: any mask of an image to codes, and codes back to a mask (paper, section 2.1).

An image is encoded once for all its masks. Masks are worked on in chunks, so memory does not grow with their
number. ``embed_images``, ``embed_masks`` and ``decode_embeddings`` are the tensor-level steps that training
uses too; ``encode``, ``decode`` and ``reconstruct`` take and give NumPy arrays.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from samtok import images
from samtok.config import PRESETS, MaskTokenizerConfig
from samtok.errors import CheckpointError
from samtok.folders import WEIGHTS_FILE, Read, read_config, resolve
from samtok.masks import iou
from samtok.model import decoder
from samtok.model.backbone import ImageFeatures, build_image_encoder, normalize
from samtok.model.encoder import MaskEncoder
from samtok.model.prompts import BOX_LABELS, mask_prompts, normalized_boxes
from samtok.model.quantizer import build_quantizer
from samtok.model.state import fill, read_state, save_folder

Image = UInt8[np.ndarray, "height width 3"]
MaskList = Sequence[np.ndarray]


@dataclass(frozen=True)
class Reconstruction:
    """What the tokenizer makes of the masks of one image, with the IoU of each in [0, 1]."""

    codes: Int[np.ndarray, "mask level"]
    masks: Bool[np.ndarray, "mask height width"]
    iou: Float[np.ndarray, " mask"]


class MaskTokenizer(nn.Module):
    """Masks to codes and back; ``samtok.config.PRESETS`` has the known architectures."""

    def __init__(self, config: MaskTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = build_image_encoder(config.backbone, config.dim)
        self.prompt_encoder = decoder.build_prompt_encoder(config)
        self.mask_encoder = MaskEncoder(decoder.build_transformer(config), config.dim)
        self.mask_decoder = decoder.build_mask_decoder(config)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.quantizer = build_quantizer(config.quantizer, config.dim)
        self.autocast_dtype: torch.dtype | None = None
        self.max_masks = 64
        self.weights_sha256: str | None = None
        """Of the file that the weights were loaded from; None if they were not."""

    @classmethod
    def from_preset(cls, name: str) -> "MaskTokenizer":
        """Builds a preset with random weights; ValueError if there is no such preset."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; known ones are {sorted(PRESETS)}.")
        return cls(PRESETS[name])

    @classmethod
    def from_pretrained(
        cls,
        uri: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        max_masks: int = 64,
        compile: bool = False,
        read: Read | None = None,
    ) -> "MaskTokenizer":
        """Loads a tokenizer for inference.

        Args:
            uri: ``tiny`` (ships with the package), or a folder written by ``save_pretrained``: a local path
                or any URI that fsspec opens, such as ``s3://bucket/tokenizer``.
            dtype: Runs the networks under autocast in this type (``torch.bfloat16`` on GPUs); embeddings are
                quantized and logits returned in float32 all the same.
            max_masks: Masks per forward pass; bounds the memory (about 40 MB each at 1024 px in float32).
            compile: Compiles the image encoder; the first image is slow, the following ones are faster.
            read: Reads a file by its URI, in the place of fsspec.

        Raises:
            CheckpointError: If files are missing, foreign, or do not fit their config.
        """
        model = cls(read_config(uri, read=read))
        weights, sha256 = read_state(uri, read=read)
        fill(model, weights, where=f"{resolve(uri)}/{WEIGHTS_FILE}")
        model.to(device).eval().requires_grad_(False)
        model.weights_sha256 = sha256
        model.autocast_dtype, model.max_masks = dtype, max_masks
        if compile:
            model.image_encoder.compile()  # in place: the names of the weights stay
        return model

    def save_pretrained(self, path: str) -> None:
        """Writes ``config.json`` and ``model.safetensors`` to a local folder, the config last."""
        save_folder(self, self.config, path)

    @property
    def num_codes(self) -> int:
        """Entries of each codebook."""
        return self.quantizer.num_codes

    @property
    def num_levels(self) -> int:
        """Codes, and so words, per mask."""
        return self.quantizer.num_levels

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.no_mem_embed.device

    # Tensor level: shared by inference and training.

    def embed_images(self, pixels: Float[Tensor, "image 3 height width"]) -> ImageFeatures:
        """Encodes normalised images, once for all their masks."""
        fine, middle, coarse = self.image_encoder(pixels)["backbone_fpn"]
        return ImageFeatures(
            fine=self.mask_decoder.conv_s0(fine),
            middle=self.mask_decoder.conv_s1(middle),
            coarse=coarse + self.no_mem_embed.reshape(1, -1, 1, 1),
        )

    def embed_masks(
        self,
        coarse: Float[Tensor, "mask dim s s"],
        prompts: Float[Tensor, "mask 1 size size"],
        boxes: Float[Tensor, "mask 4"] | None,
    ) -> Float[Tensor, "mask dim"]:
        """Returns z of each mask.

        Args:
            coarse: The coarse features of its image, one entry per mask.
            prompts: Soft masks in [0, 1] at ``config.mask_size``.
            boxes: x0, y0, x1, y1 over width and height, in [0, 1]; None prompts with the masks alone.
        """
        points = None
        if boxes is not None:
            corners = (boxes * self.config.image_size).reshape(-1, 2, 2)
            labels = torch.tensor([BOX_LABELS], device=boxes.device, dtype=torch.int32)
            points = corners, labels.expand(len(boxes), -1)
        sparse, dense = self.prompt_encoder(points=points, boxes=None, masks=prompts)
        return self.mask_encoder(coarse, self.prompt_encoder.get_dense_pe(), sparse, dense)

    def decode_embeddings(
        self, features: ImageFeatures, embeddings: Float[Tensor, "mask dim"]
    ) -> Float[Tensor, "mask size size"]:
        """Returns logits at ``config.mask_size`` of embeddings; features have one entry per mask."""
        return decoder.decode_embeddings(
            self.mask_decoder, self.prompt_encoder, features, embeddings, multimask=self.config.multimask
        )

    # Array level: inference.

    @torch.inference_mode()
    def features_of(self, batch: Sequence[np.ndarray]) -> ImageFeatures:
        """Encodes RGB uint8 images of any sizes as one batch.

        An image that is already square at ``config.image_size`` is taken as it is, so the costly resize can
        be done elsewhere (``samtok.images.resize_square``).
        """
        size = self.config.image_size
        squares = [
            image if image.shape[:2] == (size, size) else images.resize_square(image, size) for image in batch
        ]
        pixels = torch.from_numpy(np.stack(squares)).to(self.device)
        with self.autocast():
            return self.embed_images(normalize(pixels))

    @torch.inference_mode()
    def codes_of(
        self, features: ImageFeatures, masks: MaskList, image_index: Sequence[int], *, box_prompt: bool = True
    ) -> Int[np.ndarray, "mask level"]:
        """Returns the codes of masks of several images.

        Args:
            masks: Bool arrays, each at the size of its image.
            image_index: Which image each mask belongs to.
            box_prompt: Prompt with each mask's box besides the mask, as tokenizers are trained.

        Raises:
            ValueError: If a mask is empty.
            CheckpointError: If the weights give embeddings that are not finite.
        """
        codes = np.empty((len(masks), self.num_levels), dtype=np.int64)
        boxes = normalized_boxes(masks)
        for part in self._chunks(len(masks)):
            coarse = features.coarse[torch.tensor(image_index[part], device=self.device)]
            prompts = mask_prompts(masks[part], self.config.mask_size, self.device)
            prompt_boxes = torch.from_numpy(boxes[part]).to(self.device) if box_prompt else None
            with self.autocast():
                z = self.embed_masks(coarse, prompts, prompt_boxes)
            if not z.isfinite().all():
                raise CheckpointError(
                    f"embeddings are not finite in {self.autocast_dtype or torch.float32}: the weights are "
                    "damaged, or this type is too small for them. Try float32."
                )
            codes[part] = self.quantizer.encode(z).cpu().numpy()
        return codes

    @torch.inference_mode()
    def logits_of(
        self, features: ImageFeatures, codes: Int[np.ndarray, "mask level"], image_index: Sequence[int]
    ) -> Iterator[Float[Tensor, "chunk size size"]]:
        """Yields low-resolution logits chunk by chunk, in the order of the codes."""
        for part in self._chunks(len(codes)):
            of_masks = features.of_masks(torch.tensor(image_index[part], device=self.device))
            embeddings = self.quantizer.decode(torch.as_tensor(codes[part], device=self.device))
            with self.autocast():
                logits = self.decode_embeddings(of_masks, embeddings)
            yield logits.float()

    def encode(self, image: Image, masks: MaskList) -> Int[np.ndarray, "mask level"]:
        """Returns the codes of the masks of one image, each in ``[0, num_codes)``.

        Args:
            image: RGB, uint8.
            masks: Bool arrays at the image's size; an empty list gives a 0 x levels array.

        Raises:
            ValueError: If a mask is empty or has another size than the image.
        """
        return self.encode_batch([image], [masks])[0]

    def encode_batch(
        self, batch: Sequence[np.ndarray], masks: Sequence[MaskList]
    ) -> list[Int[np.ndarray, "mask level"]]:
        """Like ``encode`` for several images of any sizes, with any number of masks each."""
        _check_sizes(batch, masks)
        flat = [mask for of_image in masks for mask in of_image]
        if not flat:
            return [np.empty((0, self.num_levels), dtype=np.int64) for _ in batch]
        owners = [i for i, of_image in enumerate(masks) for _ in of_image]
        codes = self.codes_of(self.features_of(batch), flat, owners)
        return np.split(codes, np.cumsum([len(of_image) for of_image in masks])[:-1])

    def decode(
        self, image: Image, codes: Int[np.ndarray, "mask level"], *, threshold: float = 0.0
    ) -> Bool[np.ndarray, "mask height width"]:
        """Returns the masks of codes, at the image's size.

        Args:
            image: RGB, uint8.
            codes: One row per mask; fewer levels than the tokenizer has give coarser masks.
            threshold: On the logits. 0 is probability one half; the authors' evaluators use 0.5.
        """
        return self._masks(self.features_of([image]), codes, image.shape[:2], threshold)

    def decode_logits(
        self, image: Image, codes: Int[np.ndarray, "mask level"]
    ) -> Float[np.ndarray, "mask size size"]:
        """Returns the logits of codes at ``config.mask_size``, before they are resized to the image."""
        chunks = list(self.logits_of(self.features_of([image]), codes, [0] * len(codes)))
        size = self.config.mask_size
        return torch.cat(chunks).cpu().numpy() if chunks else np.empty((0, size, size), dtype=np.float32)

    def reconstruct(self, image: Image, masks: MaskList, *, threshold: float = 0.0) -> Reconstruction:
        """Encodes and decodes the masks of one image, which is encoded once for both directions."""
        _check_sizes([image], [masks])
        if not len(masks):
            codes, decoded = self.encode(image, masks), np.empty((0, *image.shape[:2]), dtype=bool)
            return Reconstruction(codes, decoded, np.empty(0))
        features = self.features_of([image])
        codes = self.codes_of(features, masks, [0] * len(masks))
        decoded = self._masks(features, codes, image.shape[:2], threshold)
        ious = [iou(a, b) for a, b in zip(masks, decoded, strict=True)]
        return Reconstruction(codes, decoded, np.array(ious))

    @torch.inference_mode()
    def masks_from_logits(
        self, logits: Float[Tensor, "mask size size"], size_hw: tuple[int, int], threshold: float = 0.0
    ) -> Bool[np.ndarray, "mask height width"]:
        """Resizes logits to (height, width) one by one (bilinear, no antialias) and thresholds them."""
        masks = np.empty((len(logits), *size_hw), dtype=bool)
        for i, one in enumerate(logits):
            full = torch.nn.functional.interpolate(one[None, None], size=size_hw, mode="bilinear")
            masks[i] = (full[0, 0] > threshold).cpu().numpy()
        return masks

    def _masks(
        self,
        features: ImageFeatures,
        codes: Int[np.ndarray, "mask level"],
        size_hw: tuple[int, int],
        threshold: float,
    ) -> Bool[np.ndarray, "mask height width"]:
        chunks = [
            self.masks_from_logits(logits, size_hw, threshold)
            for logits in self.logits_of(features, codes, [0] * len(codes))
        ]
        return np.concatenate(chunks) if chunks else np.empty((0, *size_hw), dtype=bool)

    def _chunks(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.max_masks) for start in range(0, count, self.max_masks))

    def autocast(self) -> AbstractContextManager:
        """Returns the context in which its networks run, as set by ``autocast_dtype``."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)


def _check_sizes(batch: Sequence[np.ndarray], masks: Sequence[MaskList]) -> None:
    if len(batch) != len(masks):
        raise ValueError(f"got {len(batch)} images but masks for {len(masks)}.")
    for i, (image, of_image) in enumerate(zip(batch, masks, strict=True)):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image {i} must be RGB uint8 of height x width x 3, got {image.dtype} {image.shape}."
            )
        for j, mask in enumerate(of_image):
            if mask.dtype != bool:
                raise ValueError(
                    f"mask {j} of image {i} is {mask.dtype}, expected bool; use mask > 0 for 0/255 pictures."
                )
            if mask.shape != image.shape[:2]:
                raise ValueError(f"mask {j} of image {i} is {mask.shape}, its image {image.shape[:2]}.")
