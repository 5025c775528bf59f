"""The mask tokenizer: any mask of an image to codes, and codes back to a mask (paper, section 2.1).

An image is encoded once for all its masks. Masks are worked on in chunks, so memory does not grow with their
number. ``embed_images``, ``embed_masks`` and ``decode_embeddings`` are the tensor-level steps that training
uses too; ``encode``, ``decode`` and ``reconstruct`` take what ``inputs`` lists and give NumPy arrays.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from samtok import images
from samtok.config import PRESETS, MaskTokenizerConfig
from samtok.errors import CheckpointError
from samtok.folders import Read, read_config
from samtok.masks import RunMask, iou
from samtok.model import decoder
from samtok.model.backbone import ImageFeatures, build_image_encoder, normalize
from samtok.model.encoder import MaskEncoder
from samtok.model.inputs import CodesLike, ImageLike, MasksLike, bool_masks, code_rows, rgb_image
from samtok.model.prompts import BOX_LABELS, MaskPrompts
from samtok.model.quantizer import build_quantizer
from samtok.model.state import fill, read_state, save_folder

Masks = Sequence[np.ndarray] | Sequence[RunMask] | MaskPrompts


@dataclass(frozen=True)
class Reconstruction:
    """What the tokenizer makes of the masks of one image, with the IoU of each in [0, 1]."""

    codes: Int[np.ndarray, "mask level"]
    masks: Bool[np.ndarray, "mask height width"]
    iou: Float[np.ndarray, " mask"]


@dataclass(frozen=True)
class Codes:
    """Codes that a device may still be at work on."""

    tensor: Int[Tensor, "mask level"]
    finite: Bool[Tensor, ""]
    """Whether the embeddings were numbers."""

    def wait(self) -> Int[np.ndarray, "mask level"]:
        """Returns them as soon as they are there; CheckpointError if the embeddings are not finite."""
        if not self.finite:
            raise CheckpointError(
                "embeddings are not finite: the weights are damaged, or the type of arithmetic is too small "
                "for them. Try float32."
            )
        return self.tensor.cpu().numpy()


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
        self.memory_format = torch.contiguous_format
        self.max_masks, self.max_images = 64, 4
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
        max_images: int = 4,
        compile: bool = False,
        channels_last: bool = False,
        read: Read | None = None,
    ) -> "MaskTokenizer":
        """Loads a tokenizer for inference.

        Args:
            uri: ``tiny`` (ships with the package), or a folder written by ``save_pretrained``, or that of an
                MLLM beside which ``mask_tokenizer_256x2.pth`` lies, as in the authors' checkpoints: a local
                path or any URI that fsspec opens, such as ``s3://bucket/tokenizer``.
            dtype: Runs the networks under autocast in this type (``torch.bfloat16`` on GPUs); embeddings are
                quantized and logits returned in float32 all the same.
            max_masks: Masks per forward pass; bounds the memory (about 40 MB each at 1024 px in float32).
            max_images: Images per forward pass of ``encode_batch``; bounds the memory too.
            compile: Compiles the image encoder; the first image is slow, the following ones are faster.
            channels_last: Keeps images and the weights of convolutions with channels as the last axis in
                memory, as GPUs take them in low precision.
            read: Reads a file by its URI, in the place of fsspec.

        Raises:
            CheckpointError: If files are missing, foreign, or do not fit their config.
        """
        weights, sha256 = read_state(uri, read=read)
        model = cls(read_config(uri, read=read))
        fill(model, weights, where=f"the tokenizer in {uri}")
        model.to(device).eval().requires_grad_(False)
        if channels_last:
            model.to(memory_format=torch.channels_last)
            model.memory_format = torch.channels_last
        model.weights_sha256 = sha256
        model.autocast_dtype, model.max_masks, model.max_images = dtype, max_masks, max_images
        if compile:
            model.image_encoder.compile()  # in place: the names of the weights stay
        return model

    def save_pretrained(self, uri: str) -> None:
        """Writes ``model.safetensors`` and then ``config.json`` to a folder, whose URI is as in
        ``from_pretrained``; CheckpointError if it cannot be written."""
        save_folder(self, self.config, uri)

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MaskTokenizer":
        if fn(torch.zeros(0, device=self.device)).dtype != torch.float32:
            raise ValueError(
                "the weights of a mask tokenizer stay in float32. For faster arithmetic give "
                "dtype=torch.bfloat16 to from_pretrained, or set autocast_dtype."
            )
        return super()._apply(fn, recurse)

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
        pixels = torch.from_numpy(np.stack(squares))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        pixels = pixels.to(self.device, non_blocking=True)
        with self.autocast():
            return self.embed_images(normalize(pixels).contiguous(memory_format=self.memory_format))

    @torch.inference_mode()
    def embeddings_of(
        self, features: ImageFeatures, masks: Masks, image_index: Sequence[int], *, box_prompt: bool = True
    ) -> Iterator[Float[Tensor, "chunk dim"]]:
        """Yields z of masks of several images chunk by chunk; arguments and errors as of ``codes_of``."""
        prompts = masks if isinstance(masks, MaskPrompts) else MaskPrompts.of(masks, self.config.mask_size)
        for part in self._chunks(len(prompts)):
            coarse = features.coarse[torch.tensor(image_index[part], device=self.device)]
            soft, boxes = prompts[part].on(self.device)
            with self.autocast():
                z = self.embed_masks(coarse, soft, boxes if box_prompt else None)
            yield z

    @torch.inference_mode()
    def codes_of(
        self, features: ImageFeatures, masks: Masks, image_index: Sequence[int], *, box_prompt: bool = True
    ) -> Int[np.ndarray, "mask level"]:
        """Returns the codes of masks of several images.

        Args:
            masks: Bool arrays or runs, each at the size of its image; or their prompts.
            image_index: Which image each mask belongs to.
            box_prompt: Prompt with each mask's box besides the mask, as tokenizers are trained.

        Raises:
            ValueError: If a mask is empty.
            CheckpointError: If the weights give embeddings that are not finite.
        """
        return self.begin_codes(features, masks, image_index, box_prompt=box_prompt).wait()

    @torch.inference_mode()
    def begin_codes(
        self, features: ImageFeatures, masks: Masks, image_index: Sequence[int], *, box_prompt: bool = True
    ) -> "Codes":
        """As ``codes_of``, without waiting for a GPU: other work can be prepared meanwhile."""
        chunks = self.embeddings_of(features, masks, image_index, box_prompt=box_prompt)
        codes = [torch.empty((0, self.num_levels), dtype=torch.int64, device=self.device)]
        finite = torch.ones((), dtype=torch.bool, device=self.device)
        for z in chunks:
            finite = finite & z.isfinite().all()
            codes.append(self.quantizer.encode(z))
        return Codes(torch.cat(codes), finite)

    @torch.inference_mode()
    def logits_of(
        self,
        features: ImageFeatures,
        codes: Int[np.ndarray, "mask level"] | Int[Tensor, "mask level"],
        image_index: Sequence[int],
    ) -> Iterator[Float[Tensor, "chunk size size"]]:
        """Yields low-resolution logits chunk by chunk, in the order of the codes."""
        for part in self._chunks(len(codes)):
            of_masks = features.of_masks(torch.tensor(image_index[part], device=self.device))
            embeddings = self.quantizer.decode(torch.as_tensor(codes[part], device=self.device))
            with self.autocast():
                logits = self.decode_embeddings(of_masks, embeddings)
            yield logits.float()

    def encode(self, image: ImageLike, masks: MasksLike) -> Int[np.ndarray, "mask level"]:
        """Returns the codes of the masks of one image, each in ``[0, num_codes)``.

        Args:
            image: RGB, uint8; or what else ``inputs.ImageLike`` lists.
            masks: Bool arrays at the image's size, or ``inputs.MasksLike``; no masks give a 0 x levels array.

        Raises:
            ValueError: If a mask is empty or has another size than the image.
        """
        return self.encode_batch([image], [masks])[0]

    def encode_batch(
        self, batch: Sequence[ImageLike] | np.ndarray | Tensor, masks: Sequence[MasksLike]
    ) -> list[Int[np.ndarray, "mask level"]]:
        """Like ``encode`` for several images of any sizes, with any number of masks each.

        Of ``max_images`` at once the pixels and features are held; images without masks are not encoded.
        """
        if len(batch) != len(masks):
            raise ValueError(f"got {len(batch)} images but masks for {len(masks)}.")
        codes = []
        for start in range(0, len(batch), self.max_images):
            group = range(start, min(start + self.max_images, len(batch)))
            pairs = [_checked(batch[i], masks[i], f"image {i}") for i in group]
            used = [(image, wanted) for image, wanted in pairs if wanted]
            flat = [mask for _, wanted in used for mask in wanted]
            owners = [number for number, (_, wanted) in enumerate(used) for _ in wanted]
            found = np.empty((0, self.num_levels), dtype=np.int64)
            if used:
                found = self.codes_of(self.features_of([image for image, _ in used]), flat, owners)
            codes += np.split(found, np.cumsum([len(wanted) for _, wanted in pairs])[:-1])
        return codes

    def decode(
        self, image: ImageLike, codes: CodesLike, *, threshold: float = 0.0
    ) -> Bool[np.ndarray, "mask height width"]:
        """Returns the masks of codes, at the image's size.

        Args:
            image: As in ``encode``; without codes it is not encoded.
            codes: Whole numbers, one row per mask; fewer levels than the tokenizer has give coarser masks.
            threshold: On the logits. 0 is probability one half; the authors' evaluators use 0.5.

        Raises:
            ValueError: If codes are out of range, or of too many levels.
        """
        pixels, rows = rgb_image(image, where="the image"), code_rows(codes, self.num_levels)
        if not len(rows):
            return np.empty((0, *pixels.shape[:2]), dtype=bool)
        return self.masks_of(self.features_of([pixels]), rows, pixels.shape[:2], threshold)

    def decode_logits(self, image: ImageLike, codes: CodesLike) -> Float[np.ndarray, "mask size size"]:
        """Returns the logits of codes at ``config.mask_size``, before they are resized to the image."""
        pixels, rows = rgb_image(image, where="the image"), code_rows(codes, self.num_levels)
        if not len(rows):
            return np.empty((0, self.config.mask_size, self.config.mask_size), dtype=np.float32)
        return (
            torch.cat(list(self.logits_of(self.features_of([pixels]), rows, [0] * len(rows)))).cpu().numpy()
        )

    def reconstruct(self, image: ImageLike, masks: MasksLike, *, threshold: float = 0.0) -> Reconstruction:
        """Encodes and decodes the masks of one image, which is encoded once for both directions."""
        pixels, wanted = _checked(image, masks, "image 0")
        if not wanted:
            decoded = np.empty((0, *pixels.shape[:2]), dtype=bool)
            return Reconstruction(code_rows([], self.num_levels), decoded, np.empty(0))
        features = self.features_of([pixels])
        codes = self.codes_of(features, wanted, [0] * len(wanted))
        decoded = self.masks_of(features, codes, pixels.shape[:2], threshold)
        ious = [iou(a, b) for a, b in zip(wanted, decoded, strict=True)]
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

    def masks_of(
        self,
        features: ImageFeatures,
        codes: Int[np.ndarray, "mask level"],
        size_hw: tuple[int, int],
        threshold: float = 0.0,
    ) -> Bool[np.ndarray, "mask height width"]:
        """Returns the masks of codes of one image, at (height, width), from its features."""
        chunks = self.logits_of(features, codes, [0] * len(codes))
        return np.concatenate([self.masks_from_logits(logits, size_hw, threshold) for logits in chunks])

    def _chunks(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.max_masks) for start in range(0, count, self.max_masks))

    def autocast(self) -> AbstractContextManager:
        """Returns the context in which its networks run, as set by ``autocast_dtype``."""
        return torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)


def _checked(image: ImageLike, masks: MasksLike, where: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the pixels of an image and its masks; raises ValueError with what is expected."""
    pixels = rgb_image(image, where=where)
    return pixels, bool_masks(masks, (pixels.shape[0], pixels.shape[1]), where=where)
