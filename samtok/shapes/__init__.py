"""Synthetic scenes with exact masks and true sentences: the corpus that needs no download."""

from samtok.shapes.drawing import KINDS, PALETTE
from samtok.shapes.world import Scene, ShapeObject, WorldConfig, make_scene

__all__ = ["KINDS", "PALETTE", "Scene", "ShapeObject", "WorldConfig", "make_scene"]
