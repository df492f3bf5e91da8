"""README.md of an exported folder."""

from __future__ import annotations

from pathlib import Path

from crate_graph.export.source import Source

_CARD = """\
---
library_name: {library}
pipeline_tag: image-classification
tags:
- image-classification
- {library}
- crate-graph
---
# {source.recipe}

| | |
|---|---|
| Architecture | `{source.architecture}`, {parameters:,} parameters |
| Data set | {source.dataset}, {source.num_classes} classes |
| Input | {channels} x {height} x {width}, mean {source.mean}, std {source.std} |
| Recipe | {source.recipe}, step {source.step} |
| Metrics | {metrics} |

`PATH` is this folder.

```python
{usage}
```
"""

USAGE = {
    "timm": """\
import timm
from PIL import Image

model = timm.create_model("local-dir:PATH", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
image = Image.open("image.png").convert("{mode}")
logits = model(transform(image).unsqueeze(0))
print(model.pretrained_cfg["label_names"][logits.argmax().item()])""",
    "transformers": """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("PATH")
processor = AutoImageProcessor.from_pretrained("PATH")
image = Image.open("image.png").convert("{mode}")
logits = model(**processor(image, return_tensors="pt")).logits
print(model.config.id2label[logits.argmax().item()])""",
}


def write_model_card(source: Source, folder: Path, library: str, needs_crate_graph: bool) -> None:
    """What the model is, how good it was when saved, and the lines that load it with `library`."""
    channels, height, width = source.input_shape
    usage = USAGE[library].format(mode="L" if channels == 1 else "RGB")
    card = _CARD.format(
        library=library,
        source=source,
        parameters=sum(parameter.numel() for parameter in source.model.parameters()),
        channels=channels,
        height=height,
        width=width,
        metrics=", ".join(f"{name} {value:.6g}" for name, value in source.metrics.items()) or "not measured",
        usage=("import crate_graph  # registers the model's name\n" if needs_crate_graph else "") + usage,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
