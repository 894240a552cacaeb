"""Self-supervised learning for every modality: losses, teachers, methods, one loop."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from partwhole.core.checkpoint import load_encoder, save_encoder

__all__ = ["load_encoder", "save_encoder"]


def __getattr__(name: str) -> Any:
    """``load_encoder`` and ``save_encoder`` come from ``checkpoint`` when first asked for: this import stays free."""
    if name in __all__:
        from partwhole.core import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
