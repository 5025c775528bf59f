"""Synthetic scenes with exact masks and true sentences: the corpus that needs no download."""

from samtok.shapes.drawing import KINDS, PALETTE
from samtok.shapes.language import (
    PREDICATES,
    description,
    grounded_caption,
    relations,
    text_question,
    visual_question,
)
from samtok.shapes.outline import trace_contours, trace_outline
from samtok.shapes.referring import FAMILIES, Expression, Family, referring_expressions
from samtok.shapes.world import TOUR_WORLD, WORLD_VERSION, Scene, ShapeObject, WorldConfig, make_scene

__all__ = [
    "FAMILIES",
    "KINDS",
    "PALETTE",
    "PREDICATES",
    "TOUR_WORLD",
    "WORLD_VERSION",
    "Expression",
    "Family",
    "Scene",
    "ShapeObject",
    "WorldConfig",
    "description",
    "grounded_caption",
    "make_scene",
    "referring_expressions",
    "relations",
    "text_question",
    "trace_contours",
    "trace_outline",
    "visual_question",
]
