"""CRATE as a transformers model: `AutoModelForImageClassification` gives this class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel

from crate_graph.export.hf.configuration import CrateConfig
from crate_graph.models import create_model


class CrateForImageClassification(PreTrainedModel):
    """A model of timm's registry behind transformers' interface, for inference and for fine-tuning.

    Another number of classes: from_pretrained(PATH, num_labels=N, ignore_mismatched_sizes=True), for a new head.
    Another image size: load first, then `set_image_size`, which resamples the position embedding. (Passing another
    img_size to from_pretrained with ignore_mismatched_sizes=True would draw a new position embedding instead.)
    """

    config_class = CrateConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: CrateConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = create_model(config.architecture, num_classes=config.num_labels, **config.model_args)
        if not any(parameter.is_meta for parameter in self.model.parameters()):
            for module in self.model.modules():
                module._is_hf_initialized = True  # the architecture's own initialisation is the right one
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutput | tuple:
        """pixel_values (B, C, H, W) as the image processor gives them; labels (B,) class numbers.

        Logits are (B, K); hidden_states, where asked for, one (B, D, H / patch, W / patch) tensor per layer.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        pixel_values = pixel_values.to(self.device, self.dtype)
        hidden_states = None
        if output_hidden_states:
            tokens, hidden_states = self.model.forward_intermediates(pixel_values)  # (B, N, D)
            hidden_states = tuple(hidden_states)
            logits = self.model.forward_head(tokens)  # (B, K)
        else:
            logits = self.model(pixel_values)  # (B, K)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutput(loss=loss, logits=logits, hidden_states=hidden_states)
        return output if return_dict else output.to_tuple()

    def set_image_size(self, size: int | tuple[int, int]) -> None:
        """Accept images of another size: the position embedding is resampled, and the configuration follows."""
        size = (size, size) if isinstance(size, int) else tuple(size)
        self.model.set_input_size(img_size=size)
        self.config.model_args = {**self.config.model_args, "img_size": list(size)}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw what the saved weights lack: a new head, or parameters whose shape changed."""
        super()._init_weights(module)
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            if parameter.ndim > 1:
                init.normal_(parameter, std=0.02)
            elif name == "bias":
                init.zeros_(parameter)
            else:
                init.ones_(parameter)

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        self.model.set_grad_checkpointing(enable)
