"""How many pixels of an image an MLLM sees: larger and smaller images are resized.

The limits are part of a saved processor, so whatever loads a checkpoint obeys them. transformers 4.57 and 5
both read them as ``size``; ``min_pixels`` and ``max_pixels``, as older checkpoints have them, become that.
"""

from transformers import ProcessorMixin

from samtok.errors import ConfigError


def limit_pixels(
    processor: ProcessorMixin, *, min_pixels: int | None = None, max_pixels: int | None = None
) -> None:
    """Sets the limits of a processor, height x width after resizing; None leaves what it has.

    Raises:
        ConfigError: It has no such limits, or the least is above the most.
    """
    if min_pixels is None and max_pixels is None:
        return
    images = processor.image_processor  # pyright: ignore[reportAttributeAccessIssue]
    low, high = images.size.shortest_edge, images.size.longest_edge
    if low is None or high is None:
        raise ConfigError(
            f"--image.min-pixels and --image.max-pixels: a {type(images).__name__} has no limits of pixels. "
            "Leave them out."
        )
    low, high = min_pixels or low, max_pixels or high
    if low > high:
        raise ConfigError(
            f"--image.min-pixels {low} is above --image.max-pixels {high}; one that is not given is the "
            "checkpoint's. Give both."
        )
    images.size = type(images.size)(shortest_edge=low, longest_edge=high)
