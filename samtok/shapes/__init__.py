"""Synthetic scenes with exact masks and true sentences: the corpus that needs no download."""

from samtok.shapes.drawing import KINDS, PALETTE
from samtok.shapes.language import PREDICATES, grounded_caption, referring_expressions, relations
from samtok.shapes.outline import trace_outline
from samtok.shapes.world import WORLD_VERSION, Scene, ShapeObject, WorldConfig, make_scene

__all__ = [
    "KINDS",
    "PALETTE",
    "PREDICATES",
    "WORLD_VERSION",
    "Scene",
    "ShapeObject",
    "WorldConfig",
    "grounded_caption",
    "make_scene",
    "referring_expressions",
    "relations",
    "trace_outline",
]
