"""The head of a classifier, and training it alone: linear probing."""

from __future__ import annotations

from torch import nn

from crate_graph.errors import UserError


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that give the logits, as timm's configuration of the model has them."""
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return (heads,) if isinstance(heads, str) else tuple(heads)


def in_modules(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a weight of that name belongs to one of the modules."""
    return any(name.startswith(f"{module}.") for module in modules)


def freeze_backbone(model: nn.Module) -> None:
    """Let only the head learn. `settle_backbone` keeps the rest in evaluation mode while the head trains.

    Raises UserError for a model without a head.
    """
    heads = head_names(model)
    learns = {name: in_modules(name, heads) for name, _ in model.named_parameters()}
    if not any(learns.values()):
        raise UserError(
            f"model.freeze=backbone: {type(model).__name__} has no head of its own ({', '.join(heads)}) that could "
            f"learn alone; choose a classifier, or set model.freeze=none"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns[name])
    model.backbone_is_frozen = True


def settle_backbone(model: nn.Module) -> None:
    """Put a frozen backbone into evaluation mode: no dropout, statistics of batch norms as they are."""
    if getattr(model, "backbone_is_frozen", False):
        model.eval()
        for name in head_names(model):
            model.get_submodule(name).train()


def trained_parameters(model: nn.Module) -> int:
    """Elements of the parameters that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
